"""What a credential's connections and answers say of it, and how it is spared: slowed down, or not used for a while.

"Temporarily blacklisted" has no answer of its own at APNs. It shows as refused or failing connections, GOAWAYs with an
error, refused streams, a falling stream limit, silence, or broad 429 and 503. Each worker counts what it sees of one
credential in a short time (a `Tally`), and `judge` makes a `Signal` of it: go on, slow down, or stop. Pure: the time
and the chance are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

from sender.model import Accepted, Answer, NotProcessed, Rejected, Unknown

#: Seconds for which a breaker opens the first time; doubled with each opening in a row, half of it random.
OPEN_FIRST = 5.0
OPEN_LONGEST = 900.0

#: Seconds for which TooManyProviderTokenUpdates opens it, at the least.
PROVIDER_TOKEN_HOLD = 20 * 60.0

#: Seconds without an opening after which the next one counts as the first again.
FORGIVEN_AFTER = 3600.0

#: Seconds that whoever may send the probe has for it, beyond what connecting and waiting for an answer may take.
PROBE_MARGIN = 10.0

#: What became of a probe that says nothing of the credential: we took it back, we ended, or APNs closed the connection
#: for its own ends just then.
_OVERTAKEN = ("recalled", "closed", "goaway: Shutdown", "goaway: IdleTimeout", "goaway: NO_ERROR")

#: Seconds before what found the probe taken asks again.
PROBE_PATIENCE = 3.0

#: Seconds after which a pace is forgotten that was neither cut nor raised: nothing was sent, and it would be back.
STALE_AFTER = 600.0

#: Pushes a second below which the pace never falls.
FLOOR = 10.0

#: The pace that a credential climbs to after an opening when nobody had sent anything before.
UNKNOWN_TOP = 200.0

#: The share of what it fell from that the pace regains in a second without a signal.
CLIMB = 0.02

#: Seconds between two cuts, over all workers, and from the last cut to the first step up.
CUT_EVERY = 1.0
CALM_AFTER = 3.0

#: A share of answers, refusals or timeouts counts from so many of them on: one bad device in a hundred never does, and
#: one in twenty hardly ever by chance.
FEW = 8
BROAD_SHARE = 0.15
NEARLY_ALL, MANY = 0.9, 20

#: Seconds between the first and the last of so many deadlines that passed in a row, with no answer to anything in
#: between, that are silence at whatever rate.
SILENT, SILENT_FOR = 8, 30.0

#: Seconds without any connection after which one failed attempt is enough (it took so long by itself).
UNREACHABLE = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What one worker saw of one credential in a while. Everything counts from the while's beginning but `down`,
    `unreachable_for`, `silent` and `silent_for`, which are as at its end."""

    answered: int = 0  # pushes that APNs answered, whatever it said
    judged: int = 0  # of those to devices that had no trouble before: what the next two are a share of
    unavailable: int = 0  # 5xx among them
    throttled: int = 0  # 429 TooManyRequests among them, or a 429 without a reason
    refused: int = 0  # streams, provably not processed, without a GOAWAY
    unanswered: int = 0  # deadlines that passed
    failures: int = 0  # to connect, handshakes included
    goaways: int = 0  # with an error
    lost: int = 0  # connections that broke with pushes in flight
    limit_falls: int = 0  # times that a proven connection's MAX_CONCURRENT_STREAMS was lowered
    down: bool = False  # attempts to connect failed again and again, and there is no connection
    unreachable_for: float = 0.0  # seconds for which there was none although one was wanted
    silent: int = 0  # deadlines that passed since anything was answered
    silent_for: float = 0.0  # seconds between the first and the last of them
    cause: str = ""  # the last one that a connection named

    def __add__(self, later: Tally) -> Tally:
        sums = {
            each.name: getattr(self, each.name) + getattr(later, each.name)
            for each in fields(self)
            if each.name not in ("down", "unreachable_for", "silent", "silent_for", "cause")
        }
        return Tally(
            **sums,
            down=later.down,
            unreachable_for=later.unreachable_for,
            silent=later.silent,
            silent_for=later.silent_for,
            cause=later.cause or self.cause,
        )


class Verdict(IntEnum):
    """How bad it is."""

    FINE = 0
    SLOW = 1  # cut the pace in half
    OPEN = 2  # send nothing for a while


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A verdict with its cause, in words for a person."""

    verdict: Verdict
    cause: str = ""


FINE = Signal(verdict=Verdict.FINE)


def judge(last: Tally, window: Tally) -> Signal:
    """The worst that the last look, or those of the last ten seconds together, say."""
    return max(_judge_one(last), _judge_one(window), key=lambda signal: signal.verdict)


def _judge_one(seen: Tally) -> Signal:
    return _opens(seen) or _slows(seen) or FINE


def _opens(seen: Tally) -> Signal | None:
    why = f": {seen.cause}" if seen.cause else ""
    if seen.failures and (seen.down or seen.unreachable_for >= UNREACHABLE):
        return _open(f"cannot connect{why}")
    if seen.goaways >= 3:
        return _open(f"{seen.goaways} GOAWAYs with an error{why}")
    if _nearly_all(seen.refused, seen.refused + seen.answered):
        return _open("APNs refuses the streams")
    if _nearly_all(seen.unanswered, seen.unanswered + seen.answered) or (
        seen.silent >= SILENT and seen.silent_for >= SILENT_FOR
    ):
        return _open("APNs does not answer")
    if _nearly_all(seen.unavailable + seen.throttled, seen.judged):
        return _open(_answers(seen))
    return None


def _slows(seen: Tally) -> Signal | None:
    why = f": {seen.cause}" if seen.cause else ""
    if _broad(seen.unavailable + seen.throttled, seen.judged):
        return _slow(_answers(seen))
    if _broad(seen.refused, seen.refused + seen.answered):
        return _slow(f"{seen.refused} streams refused")
    if seen.limit_falls:
        return _slow("MAX_CONCURRENT_STREAMS was lowered")
    if seen.goaways:
        return _slow(f"GOAWAY with an error{why}")
    if seen.lost >= 2:
        return _slow(f"{seen.lost} connections lost{why}")
    if seen.failures >= 3:
        return _slow(f"{seen.failures} attempts to connect failed{why}")
    if _broad(seen.unanswered, seen.unanswered + seen.answered):
        return _slow(f"{seen.unanswered} pushes were not answered")
    return None


def _answers(seen: Tally) -> str:
    parts = ((seen.unavailable, "5xx"), (seen.throttled, "429"))
    return " and ".join(f"{count} times {name}" for count, name in parts if count) + f" in {seen.judged} answers"


def _open(cause: str) -> Signal:
    return Signal(verdict=Verdict.OPEN, cause=cause)


def _slow(cause: str) -> Signal:
    return Signal(verdict=Verdict.SLOW, cause=cause)


def _broad(bad: int, of: int) -> bool:
    return bad >= FEW and bad >= of * BROAD_SHARE


def _nearly_all(bad: int, of: int) -> bool:
    return bad >= MANY and bad >= of * NEARLY_ALL


# --- openings --------------------------------------------------------------------------------------------------------


def open_seconds(trips: int, chance: float, *, scale: float = 1.0) -> float:
    """For how long the `trips`-th opening in a row (from 1) lasts: doubling up to a limit, half fixed, half random."""
    whole = min(OPEN_FIRST * 2.0 ** min(max(trips, 1) - 1, 30), OPEN_LONGEST)
    return (whole / 2 + whole / 2 * chance) * scale


def clears(answer: Answer) -> bool:
    """Whether a probe's answer closes the breaker: APNs spoke, and not of too much."""
    match answer:
        case Accepted():
            return True
        case Rejected(status=status):
            return status < 500 and status != 429
        case _:
            return False


def overtaken(answer: Answer) -> bool:
    """Whether a probe's answer is none, for no fault of the credential's: the next may try at once."""
    return isinstance(answer, NotProcessed | Unknown) and answer.cause.startswith(_OVERTAKEN)


def concerns_device(answer: Answer) -> bool:
    """Whether an answer, to a device that was throttled before, is about that device and not about the credential."""
    return isinstance(answer, Rejected) and answer.status == 429 and answer.reason == "TooManyRequests"


# --- pace ------------------------------------------------------------------------------------------------------------


def cut(pace: float | None, measured: float) -> float:
    """The pace after a signal, in pushes a second: half of what it was, or of what was measured when it had none."""
    return max(FLOOR, (measured if pace is None else min(pace, max(measured, FLOOR))) / 2)


def climb(pace: float, top: float, *, ramping: bool) -> float | None:
    """The pace after a second without a signal; None: back at what it fell from, no limit any more.

    After an opening it doubles (`ramping`: no signal came since) up to half of that; everywhere else it climbs by the
    same step.
    """
    raised = pace * 2 if ramping and pace * 2 <= top / 2 else pace + max(top * CLIMB, 1.0)
    return None if raised >= top else raised
