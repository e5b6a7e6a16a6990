"""What this process knows of the fair shares of campaigns in the limits that they have in common.

Looked up at most once a second, and only where there are such limits. A share is no limit: it says how near its turn a
campaign is published (`engine.fanout`), and who comes first when there is less than everybody asks for
(`store.limits`). What is wrong for a second, or differs between two processes, delays somebody by that.
"""

from __future__ import annotations

import threading
import time
from math import inf

from sender.policy.pace import PRIORITY_AUDIENCE
from sender.policy.sharing import SURPLUS, fair_shares, next_surplus
from sender.store.database import Database
from sender.store.wanting import wanting

#: Seconds for which the shares are believed.
FRESH = 1.0

#: Campaigns that are remembered as met.
MOST_MET = 10_000


class Shares:
    """The fair shares, by campaign. Safe to use from any thread."""

    def __init__(self, database: Database, installation_rate: float | None) -> None:
        self._database = database
        self._installation_rate = installation_rate
        self._shares: dict[int, float] = {}
        self._surplus: dict[int, float] = {}
        self._met: set[int] = set()
        self._looked_at = -inf
        self._looking = threading.Lock()

    def of(self, campaign_id: int) -> float | None:
        """The fair share of a campaign, in pushes a second; None when nobody leaves it less than it could send alone.

        While one thread looks, the others go by what was seen before.
        """
        self._keep_fresh()
        return self._shares.get(campaign_id)

    def meet(self, campaign_id: int) -> None:
        """Have what is known be of this second, and count a campaign in that was not met before: it may have started a
        moment ago."""
        if campaign_id in self._met:
            self._keep_fresh()
            return
        with self._looking:
            self._met = {campaign_id} if len(self._met) >= MOST_MET else self._met | {campaign_id}
            self._look()

    def _keep_fresh(self) -> None:
        if time.monotonic() - self._looked_at >= FRESH and self._looking.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._looking.release()

    def pace(self, campaign_id: int, rate: float | None) -> float | None:
        """How fast to publish a campaign that could send `rate` pushes a second alone: for its share, and for as much
        more as was found that others leave."""
        share = self._shares.get(campaign_id)
        if share is None or rate is None:
            return rate
        return min(rate, share * self._surplus.get(campaign_id, SURPLUS))

    def note(self, campaign_id: int, rate: float | None, *, short: bool) -> None:
        """Remember whether a campaign that is published at this pace ran `short` of batches: others left it more."""
        share = self._shares.get(campaign_id)
        if share is not None and rate is not None:
            self._surplus[campaign_id] = next_surplus(rate / share, short=short)

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        with self._database.transaction() as transaction:
            found = wanting(
                transaction, installation_limited=self._installation_rate is not None, urgent=PRIORITY_AUDIENCE
            )
        self._shares = fair_shares(found, self._installation_rate)
        self._surplus = {id: surplus for id, surplus in self._surplus.copy().items() if id in self._shares}
