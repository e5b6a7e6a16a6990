"""The guard: whether the answers of a campaign point at the configuration instead of the devices. Pure.

BadDeviceToken and DeviceTokenNotForTopic say "this token is wrong" of good tokens too, when environment, credential or
bundle id are wrong. So their share is judged before anybody believes them. A 410 is a fact about a device, and a first
campaign over an old table may be half dead: 410s count only far above what is known to be usual.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Answers that say something of the token, by what they say. Baselines fade, so that theirs are fractions."""

    accepted: float = 0
    bad_token: float = 0  # BadDeviceToken
    wrong_topic: float = 0  # DeviceTokenNotForTopic
    gone: float = 0  # 410
    moved: float = 0  # of those accepted, the ones that were accepted in the other environment

    @property
    def judged(self) -> float:
        """All of them."""
        return self.accepted + self.bad_token + self.wrong_topic + self.gone

    @property
    def refused(self) -> float:
        """Those that call the token wrong."""
        return self.bad_token + self.wrong_topic

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            accepted=self.accepted + other.accepted,
            bad_token=self.bad_token + other.bad_token,
            wrong_topic=self.wrong_topic + other.wrong_topic,
            gone=self.gone + other.gone,
            moved=self.moved + other.moved,
        )

    def __sub__(self, other: Counts) -> Counts:
        return Counts(
            accepted=self.accepted - other.accepted,
            bad_token=self.bad_token - other.bad_token,
            wrong_topic=self.wrong_topic - other.wrong_topic,
            gone=self.gone - other.gone,
            moved=self.moved - other.moved,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When the guard trips. Shares are of the judged answers."""

    outstanding: int = 500  # pushes of a trial, over all workers, that may wait for their answer or its record
    judged: int = 300  # answers that end a trial, and fewer than which no share counts
    window: int = 2000  # answers that a worker looks back on afterwards
    share: float = 0.2  # of refused tokens, or …
    times: float = 5.0  # … so many times the app's usual share, …
    most_share: float = 0.6  # … but never more than this
    gone_share: float = 0.6  # of 410s, and `times` the usual share as well
    history: int = 300  # answers that make a share usual
    few: int = 10  # answers from which an audience that is too small for a share is judged, …
    some: int = 50  # … or the beginning of a larger one, and …
    few_share: float = 0.9  # … the share of one and the same refusal that trips it then


class Sign(StrEnum):
    """What came too often."""

    BAD_TOKEN = "BadDeviceToken"  # noqa: S105
    WRONG_TOPIC = "DeviceTokenNotForTopic"
    GONE = "410"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """The guard's verdict against a configuration: what came too often, among which answers, and what is usual."""

    sign: Sign
    window: Counts
    usual: float | None  # share; None: the app has no history in this environment

    @property
    def count(self) -> float:
        """How many there were of the sign."""
        return {
            Sign.BAD_TOKEN: self.window.bad_token,
            Sign.WRONG_TOPIC: self.window.wrong_topic,
            Sign.GONE: self.window.gone,
        }[self.sign]


def assess(
    window: Counts,
    usual: Counts | None,
    thresholds: Thresholds,
    *,
    least: int | None = None,
    gone_allowed: bool = False,
) -> Trip | None:
    """Judge a window of answers against what is usual for the app in that environment (None: never seen).

    `least`: answers from which it trips when nearly all are one refusal (None: only shares count). `gone_allowed`: a
    person went on after a trip, so that 410s are no news.
    """
    known = usual if usual is not None and usual.judged >= thresholds.history else None
    judged, sign = window.judged, _worse(window)
    if judged >= thresholds.judged:
        if window.refused >= refused_limit(known, thresholds) * judged:
            return Trip(sign=sign, window=window, usual=None if known is None else known.refused / known.judged)
        if known is not None and not gone_allowed and _too_many_gone(window, known, thresholds):
            return Trip(sign=Sign.GONE, window=window, usual=known.gone / known.judged)
    elif (
        least is not None
        and judged >= least
        and max(window.bad_token, window.wrong_topic) >= thresholds.few_share * judged
    ):
        return Trip(sign=sign, window=window, usual=None if known is None else known.refused / known.judged)
    return None


def least_of(audience: int | None, thresholds: Thresholds) -> int:
    """From how many answers a start is judged by nearly all of them: the oldest tokens of a large table are often
    those of its developers."""
    return thresholds.few if audience is not None and audience <= thresholds.judged else thresholds.some


def refused_limit(usual: Counts | None, thresholds: Thresholds) -> float:
    """The share of refused tokens from which the guard trips."""
    if usual is None:
        return thresholds.share
    far_above = thresholds.times * usual.refused / usual.judged
    return max(thresholds.share, min(far_above, thresholds.most_share))


def may_be_suspicious(window: Counts, thresholds: Thresholds) -> bool:
    """Whether a window could trip at all, whatever is usual: if not, nobody needs to look up what is."""
    judged = window.judged
    return judged >= thresholds.few and (
        window.refused >= thresholds.share * judged or window.gone >= thresholds.gone_share * judged
    )


def in_doubt(recent: Counts, usual: Counts | None, thresholds: Thresholds) -> bool:
    """Whether the 410s of these answers must wait for more: there are too many for what is usual."""
    if usual is None or usual.judged < thresholds.history or recent.judged < thresholds.few:
        return False
    return _too_many_gone(recent, usual, thresholds)


def _too_many_gone(window: Counts, usual: Counts, thresholds: Thresholds) -> bool:
    share = window.gone / window.judged
    return share >= thresholds.gone_share and share >= thresholds.times * usual.gone / usual.judged


def _worse(window: Counts) -> Sign:
    return Sign.BAD_TOKEN if window.bad_token >= window.wrong_topic else Sign.WRONG_TOPIC


class Window:
    """The last answers of a campaign in an environment, in lumps: the newest that hold at least `size` answers."""

    #: Answers that `recent` holds at least.
    RECENT = 30

    def __init__(self, size: int) -> None:
        self._size = size
        self._lumps: deque[Counts] = deque()
        self.total = Counts()

    def add(self, counts: Counts) -> Counts:
        """Put answers in; returns those that are too old now."""
        if not counts.judged:
            return Counts()
        self._lumps.append(counts)
        self.total += counts
        old = Counts()
        while self.total.judged - self._lumps[0].judged >= self._size:
            left = self._lumps.popleft()
            self.total -= left
            old += left
        return old

    def recent(self) -> Counts:
        """The newest answers alone: the last lump, or as many as make a few."""
        found = Counts()
        for lump in reversed(self._lumps):
            found += lump
            if found.judged >= self.RECENT:
                break
        return found
