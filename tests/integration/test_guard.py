"""The guard over campaigns of a scripted APNs: what trips it, what does not, and that nothing is invalidated for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from sender.cli.live import why_held
from sender.client import Sender
from sender.engine.delivery import send_batch
from sender.engine.runtime import Runtime
from sender.model import ACCEPTED, Answer, Push, Rejected
from sender.policy.guard import Counts
from sender.policy.states import TrialState
from sender.settings import Settings
from sender.store import baselines, batches, trials
from sender.store.database import Database
from tests.integration.engine import BUNDLE, Engine, ScriptedClients, engine_on, token_of

BAD_TOKEN = Rejected(status=400, reason="BadDeviceToken")
WRONG_TOPIC = Rejected(status=400, reason="DeviceTokenNotForTopic")
GONE = Rejected(status=410, reason="Unregistered", timestamp=datetime(2026, 6, 1, tzinfo=UTC))
BUSY = Rejected(status=503, reason="ServiceUnavailable")
EARLIER = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        yield engine


def number(push: Push) -> int:
    return int(push.token, 16)


def one_in(count: int, answer: Answer, otherwise: Answer = ACCEPTED) -> Callable[[Push], Answer]:
    return lambda push: answer if number(push) % count == 0 else otherwise


def trial(engine: Engine, environment: str = "production") -> str:
    ((state,),) = engine.rows("SELECT state FROM {s}.trials WHERE environment = %s", (environment,))
    return str(state)


def remember(engine: Engine, environment: str = "production", **counts: float) -> None:
    """Give the app a history."""
    with engine.database.transaction() as transaction:
        ((app_id,),) = transaction.execute("SELECT id FROM {s}.apps").fetchall()
        baselines.add(transaction, app_id, {environment: Counts(**counts)})


def history(engine: Engine) -> dict[str, Counts]:
    engine.runtime.guard.flush(engine.database, everything=True)
    with engine.database.transaction() as transaction:
        ((app_id,),) = transaction.execute("SELECT id FROM {s}.apps").fetchall()
        found = baselines.load(transaction, app_id)
    return {
        environment: Counts(accepted=round(counts.accepted), gone=round(counts.gone), bad_token=round(counts.bad_token))
        for environment, counts in found.items()
    }


# --- what trips it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "cause"), [(BAD_TOKEN, "wrong environment for this credential"), (WRONG_TOPIC, "wrong bundle id")]
)
def test_a_configuration_that_is_wrong_from_the_start_costs_hundreds_of_pushes_and_no_token(
    engine: Engine, answer: Answer, cause: str
) -> None:
    engine.add_devices(5000)
    engine.answer(lambda push: answer)
    engine.enqueue()
    engine.run(rounds=5)
    report = engine.report()
    assert (report.state, report.state_actor) == ("paused", "system")
    assert report.state_reason is not None
    assert f"Likely cause: {cause}" in report.state_reason
    assert "500 of 500 answers in production" in report.state_reason
    assert len(engine.received) == 500
    assert engine.states() == {"active": 4500, "quarantined": 500}
    assert engine.outcomes() == {"rejected": 500}


def test_a_fifth_of_refused_tokens_trips_it_and_less_does_not(engine: Engine) -> None:
    engine.add_devices(2000)
    engine.answer(one_in(5, BAD_TOKEN))
    engine.enqueue("fifth")
    engine.answer(one_in(5, BAD_TOKEN))
    engine.run(rounds=5)
    assert engine.report("fifth").state == "paused"
    engine.sender.campaigns.cancel("fifth")
    engine.sweep()
    engine.answer(one_in(6, BAD_TOKEN))
    engine.enqueue("sixth")
    engine.run()
    assert engine.report("sixth").state == "completed"


def test_an_apps_usual_share_moves_the_threshold_up(engine: Engine) -> None:
    remember(engine, accepted=920, bad_token=80)  # 8 %: five times that are 40 %
    engine.add_devices(1000)
    engine.answer(one_in(3, BAD_TOKEN))
    engine.enqueue()
    engine.run()
    assert engine.report().state == "completed"


def test_a_tiny_audience_that_is_refused_almost_whole_pauses_the_campaign(engine: Engine) -> None:
    engine.add_devices(12)
    engine.answer(lambda push: BAD_TOKEN)
    engine.enqueue()
    engine.run(rounds=3)
    assert engine.report().state == "paused"
    assert trial(engine) == TrialState.TRIPPED


def test_a_tiny_audience_is_judged_as_such_while_a_large_table_is_still_cut(engine: Engine) -> None:
    engine.add_devices(12)
    engine.answer(lambda push: BAD_TOKEN)
    engine.enqueue()
    engine.start()
    with engine.database.transaction() as transaction:  # the rest of the table has nobody of the segment
        transaction.execute("UPDATE {s}.campaigns SET cut_finished = false")
    engine.work()
    assert engine.report().state == "paused"
    assert trial(engine) == TrialState.TRIPPED


def test_fewer_devices_than_that_are_not_judged(engine: Engine) -> None:
    engine.add_devices(9, registered_at=EARLIER)
    engine.answer(lambda push: BAD_TOKEN if number(push) > 1 else GONE)
    engine.enqueue()
    engine.run()
    assert engine.report().state == "completed"
    assert engine.states() == {"quarantined": 8, "invalid": 1}
    assert engine.rows("SELECT FROM {s}.trials") == []


def test_a_setting_that_goes_wrong_in_the_middle_pauses_the_campaign_and_invalidates_nothing_more(
    engine: Engine,
) -> None:
    engine.add_devices(20_000, registered_at=EARLIER)
    engine.answer(lambda push: ACCEPTED if number(push) <= 5000 else GONE if number(push) % 10 == 0 else BAD_TOKEN)
    engine.enqueue()
    engine.run(rounds=5)
    report = engine.report()
    assert report.state == "paused"
    assert report.state_reason is not None
    assert "tokens registered with the wrong environment" in report.state_reason  # the environment worked
    assert len(engine.received) <= 6000
    assert engine.states()["quarantined"] == report.by_reason["BadDeviceToken"]
    assert "invalid" not in engine.states()


def test_a_setting_that_goes_wrong_in_a_slow_campaign_pauses_it_too(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late[0])
    monkeypatch.setattr("sender.engine.protection.guard.time", clock)
    engine.add_devices(3000)
    engine.answer(lambda push: ACCEPTED if number(push) <= 1000 else BAD_TOKEN)
    engine.enqueue(batch_size=100)
    engine.start()
    while engine.queue:
        send_batch(engine.runtime, engine.queue.pop(0))
        late[0] += 60.0  # before this worker has another batch of it
        engine.runtime.guard.flush(engine.database)
    assert engine.report().state == "paused"
    assert len(engine.received) < 2000


def test_tokens_out_of_a_file_are_named_as_such(engine: Engine) -> None:
    engine.add_devices(1000)
    with engine.database.transaction() as transaction:
        transaction.execute(
            "INSERT INTO {s}.changelog (kind, actor, app_id, device_id) "
            "SELECT 'imported', 'import', app_id, id FROM {s}.devices"
        )
    engine.answer(lambda push: BAD_TOKEN)
    engine.enqueue()
    engine.run(rounds=3)
    reason = engine.report().state_reason
    assert "tokens imported with the wrong environment: 100% of the refused tokens came out of a file" in reason
    assert f"sender apps heal {BUNDLE} on" in reason


def test_a_credential_that_was_replaced_is_named_as_such(engine: Engine) -> None:
    remember(engine, accepted=1000)
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.baselines SET updated_at = now() - interval '1 day'")
        transaction.execute("UPDATE {s}.credentials SET created_at = now()")
    engine.add_devices(1000)
    engine.answer(lambda push: WRONG_TOPIC)
    engine.enqueue()
    engine.run(rounds=3)
    assert "credential of another app or team: pushes were accepted until" in engine.report().state_reason


@pytest.mark.parametrize("replaced", ["just before", "in the middle"])
def test_a_credential_that_was_replaced_is_named_though_answers_of_before_were_learned_afterwards(
    engine: Engine, replaced: str
) -> None:
    engine.add_devices(4000)
    engine.enqueue()
    engine.start()
    if replaced == "in the middle":
        for _ in range(4):
            send_batch(engine.runtime, engine.queue.pop(0))
        with engine.database.transaction() as transaction:
            transaction.execute("UPDATE {s}.baselines SET updated_at = now() - interval '1 hour'")
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.credentials SET created_at = clock_timestamp()")
        if replaced == "just before":
            transaction.execute("UPDATE {s}.campaigns SET started_at = clock_timestamp()")
    remember(engine, accepted=1000)  # the windows are written a little later
    engine.answer(lambda push: WRONG_TOPIC)
    engine.run(rounds=3)
    assert "credential of another app or team: pushes were accepted until" in engine.report().state_reason


def test_most_tokens_gone_trips_it_only_where_history_says_otherwise(engine: Engine) -> None:
    remember(engine, accepted=950, gone=50)
    engine.add_devices(2000, registered_at=EARLIER)
    engine.answer(one_in(4, ACCEPTED, otherwise=GONE))
    engine.enqueue()
    engine.run(rounds=3)
    report = engine.report()
    assert report.state == "paused"
    assert "75%; usual for this app: 5.0%" in report.state_reason
    assert engine.states() == {"active": 2000}
    assert engine.rows("SELECT FROM {s}.staged") == []


# --- what does not --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dead", [20, 3])
@pytest.mark.parametrize("known", [False, True])
def test_an_ordinary_list_with_dead_tokens_raises_no_alarm(engine: Engine, dead: int, known: bool) -> None:
    if known:
        remember(engine, accepted=950, gone=50)
    engine.add_devices(3000, registered_at=EARLIER)
    engine.answer(one_in(dead, GONE))
    engine.enqueue(batch_size=200)
    engine.run()
    assert engine.report().state == "completed"
    assert engine.states() == {"active": 3000 - 3000 // dead, "invalid": 3000 // dead}
    assert engine.rows("SELECT FROM {s}.staged") == []
    assert engine.rows("SELECT FROM {s}.reservations") == []


def test_a_first_campaign_over_a_half_dead_table_raises_no_alarm(engine: Engine) -> None:
    engine.add_devices(2000, registered_at=EARLIER)
    engine.answer(one_in(4, ACCEPTED, otherwise=GONE))
    engine.enqueue()
    engine.run()
    assert engine.report().state == "completed"
    assert engine.states() == {"active": 500, "invalid": 1500}


def test_refusals_of_tokens_in_quarantine_are_what_was_expected(engine: Engine) -> None:
    engine.add_devices(1000)
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.devices SET state = 'quarantined' WHERE id % 2 = 0")
    engine.answer(one_in(2, BAD_TOKEN))
    engine.enqueue()
    engine.run()
    assert engine.report().state == "completed"


# --- the slow start -------------------------------------------------------------------------------------------------


def test_410s_of_a_trial_wait_until_it_was_judged(engine: Engine) -> None:
    engine.add_devices(1000, registered_at=EARLIER)
    engine.answer(one_in(10, GONE))
    engine.enqueue(batch_size=100)
    engine.start()
    for judged in (100, 200):
        send_batch(engine.runtime, engine.queue.pop(0))
        assert engine.states() == {"active": 1000}
        assert len(engine.rows("SELECT FROM {s}.staged")) == judged // 10
    send_batch(engine.runtime, engine.queue.pop(0))
    assert engine.states() == {"active": 970, "invalid": 30}
    assert engine.rows("SELECT FROM {s}.staged") == []
    engine.run()
    assert engine.states() == {"active": 900, "invalid": 100}


@pytest.mark.parametrize("ends", ["cancelled", "failed"])
def test_410s_that_wait_are_believed_when_their_campaign_ends_early(engine: Engine, ends: str) -> None:
    engine.add_devices(1000, registered_at=EARLIER)
    engine.answer(one_in(10, GONE))
    engine.enqueue(batch_size=100)
    engine.start()
    send_batch(engine.runtime, engine.queue.pop(0))
    if ends == "cancelled":
        engine.sender.campaigns.cancel("hello")
    else:
        engine.answer(lambda push: Rejected(status=413, reason="PayloadTooLarge"))
        send_batch(engine.runtime, engine.queue.pop(0))
    assert engine.states() == {"active": 1000}
    for _ in range(3):
        engine.sweep()
    assert engine.report().state == ends
    assert engine.report().finished
    assert engine.states() == {"active": 990, "invalid": 10}
    assert engine.rows("SELECT FROM {s}.staged") == []


def test_a_tripped_campaign_that_is_cancelled_comes_to_its_end_and_invalidates_nothing(engine: Engine) -> None:
    engine.add_devices(1000, registered_at=EARLIER)
    engine.answer(lambda push: GONE if number(push) <= 20 else BAD_TOKEN)
    engine.enqueue(batch_size=100)
    engine.run(rounds=3)
    assert engine.report().state == "paused"
    engine.sender.campaigns.cancel("hello")
    for _ in range(3):
        engine.sweep()
    assert engine.report().finished
    assert "invalid" not in engine.states()
    assert engine.rows("SELECT FROM {s}.staged") == []


def test_a_device_that_registers_while_its_410_waits_stays(engine: Engine) -> None:
    engine.add_devices(1000, registered_at=EARLIER)
    engine.answer(one_in(50, GONE))
    engine.enqueue(batch_size=100)
    engine.start()
    send_batch(engine.runtime, engine.queue.pop(0))
    engine.sender.devices.register(BUNDLE, token_of(50))
    engine.run()
    assert engine.report().state == "completed"
    assert engine.states() == {"active": 981, "invalid": 19}
    assert engine.sender.devices.show(token_of(50)).state == "active"


def test_no_more_than_five_hundred_pushes_are_outstanding_over_all_workers(
    engine: Engine, settings: Settings, database: Database
) -> None:
    engine.add_devices(5000)
    engine.enqueue(batch_size=200)
    engine.start()
    issued: list[int] = []
    gate = threading.Event()

    def script(push: Push) -> Answer:
        issued.append(number(push))
        gate.wait()
        return ACCEPTED

    engine.answer(script)
    threads = [threading.Thread(target=send_batch, args=(engine.runtime, engine.queue.pop(0))) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + 60
        while sum(size for (size,) in engine.rows("SELECT pushes FROM {s}.reservations")) != 500:
            assert time.monotonic() < end
            time.sleep(0.05)
        with engine.database.transaction() as transaction:
            claim = batches.claim(transaction, engine.queue.pop(0))
            assert claim is not None
            room = trials.reserve(transaction, claim, "production", wanted=10, most=500)
        assert (room.state, room.pushes) == (TrialState.TRIAL, 0)
    finally:
        gate.set()  # whatever waits for it would wait for each push
        for thread in threads:
            thread.join()
    with engine.database.transaction() as transaction:
        batches.release(transaction, claim)
    engine.bring_batches_forward()  # those that found no room come again in half a second
    engine.run()
    assert engine.outcomes() == {"sent": 5000}
    assert set(engine.received.values()) == {1}
    assert trial(engine) == TrialState.TRUSTED


def test_what_a_dead_worker_had_outstanding_does_not_count(engine: Engine) -> None:
    engine.add_devices(2000)
    engine.enqueue(batch_size=500)
    engine.start()
    with engine.database.transaction() as transaction:
        dead, alive = (batches.claim(transaction, engine.queue.pop(0)) for _ in range(2))
        assert dead is not None
        assert alive is not None
        assert trials.reserve(transaction, dead, "production", wanted=500, most=500).pushes == 500
        assert trials.reserve(transaction, alive, "production", wanted=500, most=500).pushes == 0
        transaction.execute("UPDATE {s}.batches SET state = 'open', owner = NULL WHERE id = %s", (dead.batch_id,))
        assert trials.reserve(transaction, alive, "production", wanted=500, most=500).pushes == 500
        transaction.execute("UPDATE {s}.batches SET state = 'open', owner = NULL, published_at = NULL")
    engine.run()
    assert engine.outcomes() == {"sent": 2000}


def test_a_batch_larger_than_the_slow_start_goes_out_in_parts(engine: Engine) -> None:
    engine.add_devices(3000)
    engine.enqueue(batch_size=3000)
    engine.start()
    assert engine.work()[0]["sent"] == 500
    engine.bring_forward()
    engine.run()
    assert engine.outcomes() == {"sent": 3000}
    assert set(engine.received.values()) == {1}


@pytest.mark.parametrize("size", [10, 250, 301, 600])
def test_an_audience_of_any_size_comes_to_its_end(engine: Engine, size: int) -> None:
    engine.add_devices(size, registered_at=EARLIER)
    engine.answer(one_in(10, GONE))
    engine.enqueue(batch_size=50)
    engine.run()
    assert engine.report().state == "completed"
    assert engine.states() == {"active": size - size // 10, "invalid": size // 10}
    assert trial(engine) == TrialState.TRUSTED


def test_answers_that_say_nothing_of_tokens_do_not_block_a_trial(engine: Engine) -> None:
    engine.add_devices(1500, registered_at=EARLIER)
    engine.answer(lambda push: BUSY)
    engine.enqueue(batch_size=100)
    for _ in range(4):
        engine.start()
        engine.work()
    assert len(engine.received) == 1500
    assert trial(engine) == TrialState.TRIAL
    engine.answer(one_in(10, GONE))
    engine.bring_forward()
    engine.run()
    assert engine.report().state == "completed"
    assert engine.states() == {"active": 1350, "invalid": 150}


def test_a_few_retries_do_not_keep_a_small_campaigns_410s_waiting(engine: Engine) -> None:
    engine.add_devices(100, registered_at=EARLIER)
    engine.answer(lambda push: BUSY if number(push) == 1 else GONE if number(push) == 2 else ACCEPTED)
    engine.enqueue()
    engine.start()
    engine.work()
    engine.sweep()
    engine.sweep()  # the first moved the low-water mark
    assert engine.states() == {"active": 99, "invalid": 1}
    assert engine.report().retrying == 1


def test_each_environment_has_its_own_trial(engine: Engine) -> None:
    engine.add_devices(1000)
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.devices SET environment = 'sandbox' WHERE id % 2 = 0")
    engine.answer(one_in(2, BAD_TOKEN))
    engine.enqueue(batch_size=100)
    engine.run(rounds=5)
    assert engine.report().state == "paused"
    states = dict(engine.rows("SELECT environment, state FROM {s}.trials"))
    assert TrialState.TRIPPED in states.values()
    tripped = next(environment for environment, state in states.items() if state == TrialState.TRIPPED)
    assert tripped in engine.report().state_reason


def test_a_trip_over_late_answers_is_told_to_whoever_would_resume_a_paused_campaign(engine: Engine) -> None:
    engine.add_devices(2000)
    engine.enqueue()
    engine.start()

    def script(push: Push) -> Answer:
        if number(push) == 1:
            engine.sender.campaigns.pause("hello", reason="wrong picture", actor="operator")
        return BAD_TOKEN

    engine.answer(script)
    send_batch(engine.runtime, engine.queue.pop(0))
    report = engine.report()
    assert (report.state, report.state_actor, report.held) == ("paused", "system", True)
    assert report.state_reason.startswith("wrong picture. The guard paused this campaign: ")
    assert "sender campaigns resume hello" in why_held(report)
    engine.sender.apps.pause(BUNDLE, reason="holidays")
    assert "Likely cause: wrong environment" in why_held(engine.report())
    assert "holidays" in why_held(engine.report())
    engine.sender.apps.resume(BUNDLE)
    assert engine.sender.campaigns.resume("hello").report().state_reason is None
    assert trial(engine) == TrialState.TRIAL


def test_a_campaign_that_is_wrong_in_both_environments_says_so_of_both(engine: Engine) -> None:
    engine.add_devices(600)
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.devices SET environment = 'sandbox' WHERE id % 2 = 0")
    engine.answer(lambda push: BAD_TOKEN)
    engine.enqueue()
    engine.start()
    send_batch(engine.runtime, engine.queue.pop(0))
    assert "answers in production" in engine.report().state_reason
    assert "answers in sandbox" in engine.report().state_reason


# --- afterwards -----------------------------------------------------------------------------------------------------


def test_a_person_who_resumes_a_tripped_campaign_starts_it_slowly_again(engine: Engine) -> None:
    engine.add_devices(3000)
    engine.answer(lambda push: BAD_TOKEN)
    engine.enqueue()
    engine.run(rounds=3)
    assert len(engine.received) == 500
    engine.sender.campaigns.resume("hello")
    engine.run(rounds=3)
    assert engine.report().state == "paused"
    assert len(engine.received) == 1000  # another slow start: it is still wrong
    engine.sender.campaigns.resume("hello")
    assert trial(engine) == TrialState.TRIAL
    engine.answer(lambda push: ACCEPTED)
    engine.run()
    assert engine.report().state == "completed"
    assert engine.outcomes() == {"rejected": 1000, "sent": 2000}


def test_410s_do_not_stop_a_campaign_again_that_a_person_resumed(engine: Engine) -> None:
    remember(engine, accepted=9500, gone=500)
    engine.add_devices(6000, registered_at=EARLIER)
    engine.answer(lambda push: GONE)
    engine.enqueue()
    engine.run(rounds=3)
    assert engine.report().state == "paused"
    assert "410s do not stop it again" in engine.report().state_reason
    assert engine.states() == {"active": 6000}
    engine.sender.campaigns.resume("hello")
    engine.run()
    assert engine.report().state == "completed"
    assert engine.states() == {"active": 500, "invalid": 5500}  # the 500 of before were dropped


def test_a_worker_that_stands_still_with_a_trial_does_not_hold_up_those_that_ask(engine: Engine) -> None:
    engine.add_devices(2000)
    engine.enqueue()
    engine.start()
    with engine.database.transaction() as transaction:
        claim = batches.claim(transaction, engine.queue[-1])
        assert claim is not None
        assert trials.reserve(transaction, claim, "production", wanted=1, most=500).pushes == 1
    with engine.database.transaction() as transaction:
        transaction.execute("SELECT FROM {s}.trials FOR UPDATE")
        with engine.database.transaction() as other:
            other.execute("SET LOCAL lock_timeout = '5s'")
            assert trials.reserve(other, claim, "production", wanted=1, most=500) is None


def test_the_oldest_devices_of_a_large_audience_may_be_refused(engine: Engine) -> None:
    engine.add_devices(1000)
    engine.answer(lambda push: BAD_TOKEN if number(push) <= 30 else ACCEPTED)
    engine.enqueue(batch_size=10)
    engine.run()
    assert engine.report().state == "completed"


def test_a_campaign_that_expired_costs_the_guard_nothing(engine: Engine) -> None:
    engine.add_devices(600)
    engine.enqueue()
    engine.start()
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET expiration = now() - interval '1 second'")
    engine.run()
    assert engine.outcomes() == {"expired": 600}
    assert engine.rows("SELECT FROM {s}.trials") == []


def test_a_worker_forgets_its_trust_when_a_campaign_is_resumed(engine: Engine) -> None:
    engine.add_devices(8000)
    engine.answer(lambda push: ACCEPTED if number(push) <= 3000 else BAD_TOKEN)
    engine.enqueue()
    engine.run(rounds=3)
    assert engine.report().state == "paused"
    before = len(engine.received)
    engine.sender.campaigns.resume("hello")
    engine.run(rounds=3)
    assert engine.report().state == "paused"
    assert len(engine.received) - before == 500


def test_what_is_usual_is_learned_from_what_did_not_trip(engine: Engine) -> None:
    engine.add_devices(4000, registered_at=EARLIER)
    engine.answer(one_in(20, GONE))
    engine.enqueue("good")
    engine.run()
    assert history(engine) == {"production": Counts(accepted=3800, gone=200)}
    engine.answer(lambda push: BAD_TOKEN)
    engine.enqueue("bad")
    engine.run(rounds=3)
    assert engine.report("bad").state == "paused"
    assert history(engine) == {"production": Counts(accepted=3800, gone=200)}


def test_what_was_seen_before_a_change_of_rate_is_learned_too(engine: Engine) -> None:
    engine.add_devices(3000)
    engine.enqueue()
    engine.start()
    for _ in range(3):
        send_batch(engine.runtime, engine.queue.pop(0))
    engine.sender.campaigns.change("hello", rate=1_000_000)
    engine.run()
    assert history(engine) == {"production": Counts(accepted=3000)}


def test_what_was_under_way_when_a_trial_ended_is_judged_and_learned(engine: Engine, settings: Settings) -> None:
    other = Runtime(settings, role="campaign", clients=ScriptedClients())  # type: ignore[arg-type]
    remember(engine, accepted=950, gone=50)
    engine.add_devices(600, registered_at=EARLIER)
    engine.enqueue(batch_size=100)
    engine.start()
    first, *others = [engine.queue.pop(0) for _ in range(4)]

    def script(push: Push) -> Answer:  # meanwhile another worker ends the trial
        while others:
            send_batch(other, others.pop())
        return GONE

    engine.answer(script)
    send_batch(engine.runtime, first)
    other.close()
    assert trial(engine) == TrialState.TRUSTED
    assert engine.states() == {"active": 600}  # they are in doubt
    assert history(engine) == {"production": Counts(accepted=1250, gone=150)}


def test_410s_that_come_out_of_nowhere_wait_and_are_believed_when_they_stay_a_few(engine: Engine) -> None:
    remember(engine, accepted=9500, gone=500)
    engine.add_devices(6000, registered_at=EARLIER)
    engine.answer(lambda push: GONE if 3000 < number(push) <= 3500 else ACCEPTED)
    engine.enqueue()
    engine.start()
    for _ in range(6):
        send_batch(engine.runtime, engine.queue.pop(0))
    send_batch(engine.runtime, engine.queue.pop(0))
    assert engine.states() == {"active": 6000}
    assert len(engine.rows("SELECT FROM {s}.staged")) == 500
    engine.run()
    assert engine.states() == {"active": 5500, "invalid": 500}


def test_410s_that_a_dead_worker_left_waiting_are_believed_in_the_end(engine: Engine) -> None:
    remember(engine, accepted=9500, gone=500)
    engine.add_devices(2000, registered_at=EARLIER)
    engine.answer(lambda push: GONE if number(push) > 1500 else ACCEPTED)
    engine.enqueue()
    engine.run()
    assert engine.report().state == "completed"
    assert len(engine.rows("SELECT FROM {s}.staged")) == 500
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET finished_at = finished_at - interval '10 minutes'")
    engine.sweep()
    assert engine.states() == {"active": 1500, "invalid": 500}


def test_410s_that_come_out_of_nowhere_and_go_on_trip_it_and_are_dropped(engine: Engine) -> None:
    remember(engine, accepted=9500, gone=500)
    engine.add_devices(9000, registered_at=EARLIER)
    engine.answer(lambda push: GONE if number(push) > 3000 else ACCEPTED)
    engine.enqueue()
    engine.run(rounds=3)
    assert engine.report().state == "paused"
    assert engine.states() == {"active": 9000}


def test_another_worker_that_still_trusts_a_tripped_campaign_invalidates_nothing(engine: Engine) -> None:
    engine.add_devices(3000, registered_at=EARLIER)
    engine.enqueue()
    engine.start()
    send_batch(engine.runtime, engine.queue.pop(0))
    assert trial(engine) == TrialState.TRUSTED
    send_batch(engine.runtime, engine.queue.pop(0))  # this process knows that now

    def script(push: Push) -> Answer:
        with engine.database.transaction() as transaction:  # another process trips it while this batch is under way
            transaction.execute("UPDATE {s}.trials SET state = 'tripped'")
        return GONE

    engine.answer(script)
    send_batch(engine.runtime, engine.queue.pop(0))
    assert engine.states() == {"active": 3000}
    assert engine.outcomes() == {"sent": 1000, "rejected": 500}
