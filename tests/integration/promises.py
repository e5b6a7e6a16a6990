"""What the database says at one moment, and what must hold of it and of two moments in a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sender.policy.states import (
    APP_MOVES,
    BATCH_MOVES,
    BREAKER_MOVES,
    CAMPAIGN_MOVES,
    DEVICE_MOVES,
    TRIAL_MOVES,
    Outcome,
)
from tests.integration.engine import Engine

_CUT = """
SELECT b.campaign_id, d.token FROM {s}.batches b CROSS JOIN unnest(b.device_ids) AS i(id)
JOIN {s}.devices d ON d.id = i.id
"""
_READ = {
    "campaigns": "SELECT id, state, delivery FROM {s}.campaigns",
    "batches": "SELECT id, state, epoch FROM {s}.batches",
    "devices": "SELECT token, state FROM {s}.devices",
    "apps": "SELECT bundle_id, state FROM {s}.apps",
    "breakers": "SELECT credential, state FROM {s}.breakers",
    "trials": "SELECT campaign_id, environment, state FROM {s}.trials",
    "finals": "SELECT l.campaign_id, d.token, l.outcome FROM {s}.deliveries l JOIN {s}.devices d ON d.id = l.device_id",
    "cut": _CUT,
    "open": _CUT.replace("b.campaign_id, d.token", "b.id, b.campaign_id, d.token") + " WHERE b.state <> 'done'",
    "retries": "SELECT r.campaign_id, d.token, r.batch_id FROM {s}.retries r JOIN {s}.devices d ON d.id = r.device_id",
    "intents": "SELECT campaign_id, device_id FROM {s}.intents",
    # Those of claims that there are still: others are void.
    "reservations": "SELECT r.batch_id FROM {s}.reservations r JOIN {s}.batches b ON b.id = r.batch_id "
    "AND b.epoch = r.epoch WHERE b.state = 'claimed' AND r.pushes > 0",
    "counted": "SELECT campaign_id, "
    + ", ".join(f"sum({each})::int" for each in Outcome)
    + " FROM {s}.batches GROUP BY 1",
    "reasons": "SELECT b.campaign_id, r.key, sum(r.value::int)::int "
    "FROM {s}.batches b, jsonb_each_text(b.reasons) AS r GROUP BY 1, 2",
    "ledger_reasons": "SELECT campaign_id, reason, count(*)::int FROM {s}.deliveries WHERE reason IS NOT NULL "
    "GROUP BY 1, 2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """Everything that the promises are about."""

    campaigns: Mapping[int, str]
    at_most_once: Mapping[int, bool]  # by campaign
    batches: Mapping[int, tuple[str, int]]  # state, claims so far
    devices: Mapping[str, str]
    apps: Mapping[str, str]
    breakers: Mapping[str, str]
    trials: Mapping[tuple[int, str], str]
    finals: Mapping[tuple[int, str], str]  # (campaign, token) -> outcome
    rows: int  # of the ledger
    cut: Mapping[int, set[str]]  # campaign -> tokens that are in its batches
    open: Mapping[int, tuple[int, set[str]]]  # batch that is not done -> campaign, tokens
    retries: Mapping[tuple[int, str], int | None]  # (campaign, token) -> the batch that has it
    intents: set[tuple[int, int]]
    reservations: int
    counted: Mapping[tuple[int, str], int]  # (campaign, outcome) -> by the batches
    reasons: Mapping[tuple[int, str], int]  # (campaign, reason) -> by the batches
    ledger_reasons: Mapping[tuple[int, str], int]


def read_books(engine: Engine) -> Books:
    """Read everything, in one transaction and one round trip."""
    with engine.database.transaction() as transaction, transaction.connection.pipeline():
        cursors = {name: transaction.execute(statement) for name, statement in _READ.items()}
        found: dict[str, list[Any]] = {name: cursor.fetchall() for name, cursor in cursors.items()}
    open_: dict[int, tuple[int, set[str]]] = {}
    for batch, campaign, token in found["open"]:
        open_.setdefault(batch, (campaign, set()))[1].add(token)
    cut: dict[int, set[str]] = {}
    for campaign, token in found["cut"]:
        cut.setdefault(campaign, set()).add(token)
    return Books(
        campaigns={id: state for id, state, _ in found["campaigns"]},
        at_most_once={id: way == "at_most_once" for id, _, way in found["campaigns"]},
        batches={id: (state, epoch) for id, state, epoch in found["batches"]},
        devices=dict(found["devices"]),
        apps=dict(found["apps"]),
        breakers=dict(found["breakers"]),
        trials={(id, environment): state for id, environment, state in found["trials"]},
        finals={(campaign, token): outcome for campaign, token, outcome in found["finals"]},
        rows=len(found["finals"]),
        cut=cut,
        open=open_,
        retries={(campaign, token): batch for campaign, token, batch in found["retries"]},
        intents=set(found["intents"]),
        reservations=len(found["reservations"]),
        counted={
            (campaign, outcome.value): count
            for campaign, *counts in found["counted"]
            for outcome, count in zip(Outcome, counts, strict=True)
            if count
        },
        reasons={(campaign, reason): count for campaign, reason, count in found["reasons"]},
        ledger_reasons={(campaign, reason): count for campaign, reason, count in found["ledger_reasons"]},
    )


def check_promises(now: Books) -> None:
    """What holds at every moment."""
    assert now.rows == len(now.finals), "a device has two final rows"
    ledger: dict[tuple[int, str], int] = {}
    for (campaign, _), outcome in now.finals.items():
        ledger[campaign, outcome] = ledger.get((campaign, outcome), 0) + 1
    assert ledger == now.counted, "the batches count something else than the ledger"
    assert now.reasons == now.ledger_reasons, "the batches count other reasons than the ledger"
    held = {(campaign, token) for campaign, tokens in now.open.values() for token in tokens}
    for campaign, tokens in now.cut.items():
        for token in tokens:
            place = (campaign, token)
            assert place in now.finals or place in now.retries or place in held, f"{place} is lost"
    for place, batch in now.retries.items():
        assert place not in now.finals, f"{place} is final and waits for a retry"
        assert batch is None or batch in now.open, f"the retry {place} waits for batch {batch}, which is done"


def check_moves(before: Books, now: Books) -> None:
    """What holds of two moments in a row: states move along their maps, ends stay, claims are counted up."""
    _check_states("campaign", before.campaigns, now.campaigns, CAMPAIGN_MOVES)
    _check_states("device", before.devices, now.devices, DEVICE_MOVES)
    _check_states("app", before.apps, now.apps, APP_MOVES)
    _check_states("breaker", before.breakers, now.breakers, BREAKER_MOVES)
    _check_states("trial", before.trials, now.trials, TRIAL_MOVES)
    states = ({id: state for id, (state, _) in each.batches.items()} for each in (before, now))
    _check_states("batch", *states, BATCH_MOVES)
    for batch, (_, epoch) in before.batches.items():
        assert now.batches[batch][1] >= epoch, f"batch {batch} counts fewer claims than before"
    for place, outcome in before.finals.items():
        assert now.finals.get(place) == outcome, f"{place} was {outcome} and is {now.finals.get(place)}"


def _check_states(what: str, before: Mapping[Any, str], now: Mapping[Any, str], moves: Mapping[Any, Any]) -> None:
    for key, state in before.items():
        after = now.get(key)
        assert after in reachable(state, moves), f"{what} {key} moved from {state} to {after}"


def reachable(state: str, moves: Mapping[Any, frozenset[StrEnum]]) -> set[str]:
    """A state, and all that can be reached from it."""
    found: set[str] = set()
    left: list[str] = [state]
    while left:
        at = left.pop()
        if at not in found:
            found.add(at)
            left += _values(moves[at])
    return found


def _values(states: Iterable[StrEnum]) -> list[str]:
    return [state.value for state in states]
