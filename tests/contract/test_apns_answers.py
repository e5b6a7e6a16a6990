"""What the client makes of every way in which an APNs can answer, with our protocol and with aioapns's own.

Where aioapns's protocol cannot do it, the reason stands beside it (`STOCK_CANNOT`).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sender.model import Accepted, Answer, CredentialRef, NotProcessed, PushHeaders, PushType, Rejected, Unknown
from sender.simulator import Behaviour, Drop, GoAway, Rule, Scenario, Settings, Simulator
from tests.contract.conftest import APP, HEADERS, PAYLOAD, Bench, push, pushes

STOCK_CANNOT = {
    "test_a_refused_stream_was_not_processed": "aioapns does not look at RST_STREAM",
    "test_a_reset_is_unknown_and_names_its_code": "aioapns does not look at RST_STREAM",
    "test_an_error_without_a_body_keeps_its_status": "aioapns waits for the body for ever",
    "test_answers_are_matched_by_stream_and_not_by_apns_id": "aioapns matches by apns-id, case-sensitively",
    "test_goaway_divides_what_was_processed_from_what_was_not": "aioapns drops every stream at a GOAWAY",
    "test_ten_thousand_rejections_in_a_row_need_one_connection": "aioapns never acknowledges received DATA",
    "test_streams_open_only_as_far_as_the_limit_allows": "aioapns sends a thousand before it has seen SETTINGS",
    "test_windows_smaller_than_a_payload_are_waited_for": "aioapns raises when a window is full",
    "test_every_header_arrives_as_given": "aioapns adds its own idea of the time to an expiration",
    "test_the_sandbox_tells_its_unique_id": "aioapns does not pass it on",
}


@pytest.fixture(params=["ngh2", "stock"])
def bench(request: pytest.FixtureRequest, key_ref: CredentialRef, simulator: Simulator) -> Bench:
    if request.param == "stock":
        reason = STOCK_CANNOT.get(request.function.__name__)
        if reason is not None:
            pytest.skip(f"the stock protocol cannot: {reason}")
        # it sends a thousand before it has seen SETTINGS, and waits for ever for those that are refused
        simulator.control.set_scenario(Scenario(settings=Settings(streams_before_auth=1000)))
    return Bench(ref=key_ref, protocol=request.param).at(simulator)


def rule(simulator: Simulator, **fields: object) -> str:
    """A token with a rule of its own."""
    token = push().token
    simulator.control.add_rules([Rule(tokens=(token,), **fields)])  # type: ignore[arg-type]
    return token


def answer_for(bench: Bench, token: str, *, timeout: float = 10.0) -> Answer:
    return bench.send([push(token)], timeout=timeout)[0]


def test_answers_come_in_the_order_of_the_pushes(bench: Bench, simulator: Simulator) -> None:
    bad = {place: rule(simulator, behaviour=Behaviour.BAD) for place in (0, 3, 7)}
    sent = [push(bad.get(place)) for place in range(9)]
    answers = bench.send(sent)
    assert [isinstance(answer, Rejected) for answer in answers] == [place in bad for place in range(9)]


def test_a_rejection_has_status_reason_and_timestamp(bench: Bench, simulator: Simulator) -> None:
    token = rule(simulator, behaviour=Behaviour.UNREGISTERED, timestamp=1_700_000_000_123)
    answer = answer_for(bench, token)
    when = datetime.fromtimestamp(1_700_000_000, UTC) + timedelta(milliseconds=123)
    assert answer == Rejected(status=410, reason="Unregistered", timestamp=when)


def test_an_unknown_reason_is_passed_on(bench: Bench, simulator: Simulator) -> None:
    assert answer_for(bench, rule(simulator, status=418, reason="TeapotTooHot")) == Rejected(
        status=418, reason="TeapotTooHot"
    )


def test_an_error_without_a_body_keeps_its_status(bench: Bench, simulator: Simulator) -> None:
    assert answer_for(bench, rule(simulator, status=503, reason="")) == Rejected(status=503)


@pytest.mark.parametrize("odd", [Behaviour.NO_APNS_ID, Behaviour.UPPER_CASE_ID])
def test_answers_are_matched_by_stream_and_not_by_apns_id(bench: Bench, simulator: Simulator, odd: Behaviour) -> None:
    assert answer_for(bench, rule(simulator, behaviour=odd)) == Accepted()


def test_a_refused_stream_was_not_processed(bench: Bench, simulator: Simulator) -> None:
    assert answer_for(bench, rule(simulator, behaviour=Behaviour.REFUSED)) == NotProcessed(cause="refused")


@pytest.mark.parametrize(
    ("code", "name"), [(0, "NO_ERROR"), (2, "INTERNAL_ERROR"), (11, "ENHANCE_YOUR_CALM"), (77, "code 77")]
)
def test_a_reset_is_unknown_and_names_its_code(bench: Bench, simulator: Simulator, code: int, name: str) -> None:
    token = rule(simulator, behaviour=Behaviour.RESET, reset_code=code)
    assert answer_for(bench, token) == Unknown(cause=f"reset: {name}")


def test_a_success_cut_short_after_its_status_is_accepted(bench: Bench, simulator: Simulator) -> None:
    assert answer_for(bench, rule(simulator, behaviour=Behaviour.RESET_AFTER_HEADERS)) == Accepted()


def test_a_silent_stream_is_unknown_at_its_deadline_and_disturbs_nobody(bench: Bench, simulator: Simulator) -> None:
    silent = rule(simulator, behaviour=Behaviour.SILENT)
    answers = bench.send([push(), push(silent), push()], timeout=1.0)
    assert answers == [Accepted(), Unknown(cause="timeout"), Accepted()]


@pytest.mark.parametrize("delivered", [False, True])
def test_a_lost_connection_makes_what_was_in_flight_unknown(
    bench: Bench, simulator: Simulator, delivered: bool
) -> None:
    behaviour = Behaviour.DROPPED_AFTER if delivered else Behaviour.DROPPED_BEFORE
    answer = answer_for(bench, rule(simulator, behaviour=behaviour))
    assert isinstance(answer, Unknown)
    assert answer.cause.startswith("connection lost")


@pytest.mark.parametrize(
    ("said", "cause"), [({"reason": "Shutdown"}, "goaway: Shutdown"), ({"debug": "bye"}, "goaway: NO_ERROR: bye")]
)
def test_goaway_divides_what_was_processed_from_what_was_not(
    bench: Bench, simulator: Simulator, said: dict[str, str], cause: str
) -> None:
    goaway = GoAway(after_requests=(20, 20), above=4, unanswered=3, close_after_ms=300, connections=1, **said)
    settings = Settings(streams_before_auth=1000)
    simulator.control.set_scenario(Scenario(goaway=goaway, settings=settings))
    sent = pushes(20)
    answers = bench.send(sent, timeout=3.0)
    assert answers[:13] == [Accepted()] * 13
    assert all(isinstance(answer, Unknown) for answer in answers[13:16])
    assert answers[16:] == [NotProcessed(cause=cause)] * 4
    delivered = simulator.control.accepted_counts()
    assert all(delivered.get(each.token) == 1 for each in sent[:16])
    assert not any(each.token in delivered for each in sent[16:])


def test_streams_open_only_as_far_as_the_limit_allows(bench: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(settings=Settings(max_concurrent_streams=3), latency_ms=5))
    assert bench.send(pushes(60)) == [Accepted()] * 60


def test_windows_smaller_than_a_payload_are_waited_for(bench: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(settings=Settings(initial_window_size=64)))
    large = b'{"aps":{"alert":"' + b"x" * 4000 + b'"}}'
    assert bench.send(pushes(50, payload=large)) == [Accepted()] * 50


def test_every_header_arrives_as_given(bench: Bench, simulator: Simulator) -> None:
    sent = [
        push(headers=PushHeaders(topic=APP, push_type=kind, priority=5, expiration=expiration, collapse_id=collapse))
        for kind in (PushType.ALERT, PushType.BACKGROUND)
        for expiration in (None, 0, 1_900_000_000)
        for collapse in (None, "sale")
    ]
    assert bench.send(sent) == [Accepted()] * len(sent)
    for each in sent:
        (got,) = simulator.control.received(each.token)
        headers = each.headers
        assert (got.apns_id, got.topic, got.push_type, got.priority, got.expiration, got.collapse_id, got.payload) == (
            each.apns_id, headers.topic, headers.push_type, 5, headers.expiration, headers.collapse_id, PAYLOAD,
        )  # fmt: skip


def test_the_sandbox_tells_its_unique_id(bench: Bench, simulator: Simulator) -> None:
    bench.url = simulator.sandbox_url
    answer = bench.send([push()])[0]
    assert isinstance(answer, Accepted)
    assert len(str(answer.apns_unique_id)) == 36


def test_ten_thousand_rejections_in_a_row_need_one_connection(bench: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(rules=(Rule(prefix="", behaviour=Behaviour.BAD),)))
    answers = bench.send(pushes(10_000), timeout=30)
    assert answers == [Rejected(status=400, reason="BadDeviceToken")] * 10_000
    assert simulator.control.counters().connections_opened == 1


def test_a_drop_in_the_middle_loses_no_answer(bench: Bench, simulator: Simulator) -> None:
    settings = Settings(streams_before_auth=1000)
    simulator.control.set_scenario(Scenario(settings=settings, drop=Drop(after_requests=(40, 60), connections=2)))
    answers = bench.send(pushes(500), timeout=2)
    assert len(answers) == 500
    assert all(isinstance(answer, Accepted | Unknown | NotProcessed) for answer in answers)
    assert max(simulator.control.accepted_counts().values()) == 1


def test_every_push_type_is_sent(bench: Bench, simulator: Simulator) -> None:
    sent = [
        push(headers=PushHeaders(topic=HEADERS.topic, push_type=kind, priority=10, expiration=None))
        for kind in PushType
    ]
    bench.send(sent)
    assert [next(simulator.control.received(each.token)).push_type for each in sent] == [
        kind.value for kind in PushType
    ]
