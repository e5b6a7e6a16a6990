"""Environment healing: a refused token is tried in the other environment, and moves when that takes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import cycle
from types import SimpleNamespace

import pytest

from sender.client import Sender
from sender.engine.delivery import send_batch
from sender.engine.runtime import Runtime
from sender.errors import ConflictError
from sender.model import ACCEPTED, Answer, NotProcessed, Push, Rejected, Unknown
from sender.settings import Settings
from sender.store import breakers, sending
from sender.store.breakers import Opening
from sender.store.database import Database
from tests.integration.engine import BUNDLE, Engine, ScriptedClient, engine_on

BAD_TOKEN = Rejected(status=400, reason="BadDeviceToken")
BUSY = Rejected(status=503, reason="ServiceUnavailable")
GONE = Rejected(status=410, reason="Unregistered")
FORBIDDEN = Rejected(status=403, reason="BadEnvironmentKeyIdInToken")


class Apns:
    """Two environments that count what they get, and accept the tokens that belong to them."""

    def __init__(self, engine: Engine, sandbox: Callable[[int], bool], production: Callable[[int], bool]) -> None:
        self.engine = engine
        engine.answer(lambda push: ACCEPTED if production(number(push)) else BAD_TOKEN)
        engine.apns.sandbox = ScriptedClient(lambda push: ACCEPTED if sandbox(number(push)) else BAD_TOKEN)

    @property
    def production(self) -> int:
        return len(self.engine.apns.client.pushes)

    @property
    def sandbox(self) -> int:
        assert self.engine.apns.sandbox is not None
        return len(self.engine.apns.sandbox.pushes)

    def answer_sandbox(self, script: Callable[[Push], Answer]) -> None:
        assert self.engine.apns.sandbox is not None
        self.engine.apns.sandbox.script = script


def number(push: Push) -> int:
    return int(push.token, 16)


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        engine.sender.apps.set_healing(BUNDLE, True)
        yield engine


def environments(engine: Engine) -> dict[str, int]:
    return dict(engine.rows("SELECT environment, count(*) FROM {s}.devices GROUP BY 1"))


def test_a_table_that_was_imported_with_the_wrong_environment_is_delivered_and_moves(engine: Engine) -> None:
    apns = Apns(engine, sandbox=lambda n: True, production=lambda n: False)
    engine.add_devices(5000)
    engine.enqueue()
    engine.run()
    assert engine.report().state == "completed"
    assert engine.outcomes() == {"sent": 5000}
    assert environments(engine) == {"sandbox": 5000}
    assert engine.states() == {"active": 5000}
    assert (apns.production, apns.sandbox) == (500, 5000)  # after the first batch they go straight there
    rows = engine.rows(
        "SELECT kind, actor, reason, old, new, count(*), count(DISTINCT apns_id) FROM {s}.changelog GROUP BY 1,2,3,4,5"
    )
    old, new = {"environment": "production"}, {"environment": "sandbox"}
    assert rows == [("environment_changed", "apns", "BadDeviceToken", old, new, 5000, 5000)]
    assert engine.rows("SELECT state, judged, moved, probed FROM {s}.trials") == [("trusted", 5000, 5000, 500)]


def test_another_worker_takes_over_what_was_learned(engine: Engine, settings: Settings) -> None:
    apns = Apns(engine, sandbox=lambda n: True, production=lambda n: False)
    engine.add_devices(2000)
    engine.enqueue()
    engine.start()
    send_batch(engine.runtime, engine.queue.pop(0))
    other = Runtime(settings, role="campaign", clients=engine.apns)  # type: ignore[arg-type]
    send_batch(other, engine.queue.pop(0))
    other.close()
    assert (apns.production, apns.sandbox) == (500, 1000)


def test_the_success_counts_where_it_was_accepted(engine: Engine) -> None:
    Apns(engine, sandbox=lambda n: True, production=lambda n: False)
    engine.add_devices(1000)
    engine.enqueue()
    engine.run()
    engine.runtime.guard.flush(engine.database, everything=True)
    assert engine.rows("SELECT environment, round(accepted) FROM {s}.baselines WHERE judged > 0") == [("sandbox", 1000)]


def test_the_right_ones_of_a_mixed_table_are_still_delivered(engine: Engine) -> None:
    apns = Apns(engine, sandbox=lambda n: n % 4 != 0, production=lambda n: n % 4 == 0)
    engine.add_devices(3000)
    engine.enqueue(batch_size=200)
    engine.run()
    assert engine.outcomes() == {"sent": 3000}
    assert environments(engine) == {"sandbox": 2250, "production": 750}
    assert apns.sandbox == 3000 - 50  # of the first batch only the wrong ones
    assert apns.production == 200 + (3000 - 200) // 4


def test_a_minority_is_probed_one_by_one_and_the_rest_goes_where_it_belongs(engine: Engine) -> None:
    apns = Apns(engine, sandbox=lambda n: n % 5 == 0, production=lambda n: n % 5 != 0)
    engine.add_devices(3000)
    engine.enqueue()
    engine.run()
    assert engine.outcomes() == {"sent": 3000}
    assert environments(engine) == {"sandbox": 600, "production": 2400}
    assert (apns.production, apns.sandbox) == (3000, 600)


def test_a_kind_that_changes_in_the_middle_of_the_table_is_noticed(engine: Engine) -> None:
    apns = Apns(engine, sandbox=lambda n: n <= 1000, production=lambda n: n > 1000)
    engine.add_devices(6000)
    engine.enqueue(batch_size=100)
    engine.run()
    assert engine.outcomes() == {"sent": 6000}
    assert environments(engine) == {"sandbox": 1000, "production": 5000}
    assert apns.sandbox <= 1000 + 700


def test_garbage_is_no_storm_at_the_other_host(engine: Engine) -> None:
    apns = Apns(engine, sandbox=lambda n: False, production=lambda n: n % 10 != 0)
    engine.add_devices(6000)
    engine.enqueue(batch_size=100)
    engine.run()
    assert engine.report().state == "completed"
    assert engine.states() == {"active": 5400, "quarantined": 600}
    assert apns.sandbox <= 200 + 60  # and a trickle: one a second


def test_garbage_is_no_storm_of_several_workers_either(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sender.engine.protection.healing.time", SimpleNamespace(monotonic=lambda: 1000.0)
    )  # one trickles each
    apns = Apns(engine, sandbox=lambda n: False, production=lambda n: n % 10 != 0)
    others = [Runtime(settings, role="campaign", clients=engine.apns) for _ in range(2)]  # type: ignore[arg-type]
    workers = cycle([engine.runtime, *others])
    engine.add_devices(6000)
    engine.enqueue(batch_size=100)
    while not engine.report().finished:
        engine.start()
        while engine.queue:
            send_batch(next(workers), engine.queue.pop(0))
        engine.sweep()
    for other in others:
        other.close()
    assert engine.states() == {"active": 5400, "quarantined": 600}
    assert apns.sandbox <= 200 + 30 + 3  # what the others had not heard of yet, and the trickle


def test_a_table_of_garbage_trips_the_guard_and_costs_hundreds_of_probes(engine: Engine) -> None:
    apns = Apns(engine, sandbox=lambda n: False, production=lambda n: False)
    engine.add_devices(6000)
    engine.enqueue()
    engine.run(rounds=4)
    assert engine.report().state == "paused"
    assert (apns.production, apns.sandbox) == (500, 500)
    assert environments(engine) == {"production": 6000}


def test_without_healing_nothing_is_probed(engine: Engine) -> None:
    engine.sender.apps.set_healing(BUNDLE, False)
    apns = Apns(engine, sandbox=lambda n: True, production=lambda n: False)
    engine.add_devices(1000)
    engine.enqueue()
    engine.run(rounds=3)
    assert apns.sandbox == 0
    assert engine.report().state == "paused"


def test_a_probe_that_may_yet_succeed_is_tried_again(engine: Engine) -> None:
    apns = Apns(engine, sandbox=lambda n: True, production=lambda n: False)
    apns.answer_sandbox(lambda push: BUSY)
    engine.add_devices(4)
    engine.enqueue()
    engine.start()
    engine.work()
    assert engine.report().retrying == 4
    apns.answer_sandbox(lambda push: NotProcessed(cause="REFUSED_STREAM"))
    engine.bring_forward()
    engine.sweep()
    engine.work()
    apns.answer_sandbox(lambda push: ACCEPTED)
    engine.bring_forward()
    engine.run()
    assert engine.outcomes() == {"sent": 4}
    assert environments(engine) == {"sandbox": 4}


def test_a_probe_without_an_answer_is_unknown_when_at_most_once(engine: Engine) -> None:
    apns = Apns(engine, sandbox=lambda n: True, production=lambda n: False)
    apns.answer_sandbox(lambda push: Unknown(cause="timeout"))
    engine.add_devices(3)
    engine.enqueue(delivery="at_most_once")
    engine.run()
    assert engine.outcomes() == {"unknown": 3}
    assert (apns.production, apns.sandbox) == (3, 3)
    assert environments(engine) == {"production": 3}


def test_an_at_most_once_campaign_is_healed_too(engine: Engine) -> None:
    apns = Apns(engine, sandbox=lambda n: True, production=lambda n: False)
    engine.add_devices(1200)
    engine.enqueue(delivery="at_most_once")
    engine.run()
    assert engine.outcomes() == {"sent": 1200}
    assert apns.sandbox == 1200
    assert engine.rows("SELECT FROM {s}.intents") == []


def test_a_fault_of_the_other_credential_is_no_reason_to_pause_the_app(engine: Engine) -> None:
    apns = Apns(engine, sandbox=lambda n: True, production=lambda n: n > 2)
    apns.answer_sandbox(lambda push: FORBIDDEN)
    engine.add_devices(20)
    engine.enqueue()
    engine.run()
    assert engine.report().state == "completed"
    assert engine.rows("SELECT state FROM {s}.apps") == [("active",)]
    assert engine.states() == {"active": 18, "quarantined": 2}


def sending_identity(engine: Engine, environment: str) -> str:
    with engine.database.transaction() as transaction:
        ((app_id,),) = transaction.execute("SELECT id FROM {s}.apps").fetchall()
        return sending.credentials(transaction, app_id)[environment].identity


def gone_straight(engine: Engine, own: Answer) -> Apns:
    """A campaign whose devices go to sandbox first, as most of them belong there; one in five is answered so by
    production, its own environment."""
    apns = Apns(engine, sandbox=lambda n: n % 5 != 0, production=lambda n: False)
    engine.answer(lambda push: own if number(push) % 5 == 0 else BAD_TOKEN)
    engine.add_devices(1000)
    engine.enqueue(batch_size=500)
    return apns


def test_of_a_device_that_went_straight_elsewhere_the_word_of_its_own_environment_counts(engine: Engine) -> None:
    gone_straight(engine, GONE)
    engine.run()
    assert engine.report().state == "completed"
    assert engine.report().by_reason == {"Unregistered": 200}
    assert engine.states() == {"active": 800, "invalid": 200}
    assert environments(engine) == {"sandbox": 800, "production": 200}


def test_a_fault_of_its_own_credential_is_no_word_on_a_device_that_went_straight_elsewhere(engine: Engine) -> None:
    gone_straight(engine, ACCEPTED)
    engine.start()
    send_batch(engine.runtime, engine.queue.pop(0))
    engine.answer(lambda push: Rejected(status=403, reason="InvalidProviderToken"))
    engine.bring_forward()
    engine.run(rounds=2)
    assert engine.states() == {"active": 1000}
    assert engine.rows("SELECT state FROM {s}.apps") == [("paused",)]
    assert engine.apns.renewed == 1  # it may have been the connection's fault


def test_without_an_answer_of_its_own_environment_a_device_that_went_straight_elsewhere_waits(engine: Engine) -> None:
    apns = gone_straight(engine, ACCEPTED)
    engine.start()
    send_batch(engine.runtime, engine.queue.pop(0))
    identity = sending_identity(engine, "production")

    def belongs(push: Push) -> Answer:
        return ACCEPTED if number(push) % 5 else BAD_TOKEN

    def shut_production(push: Push) -> Answer:  # its breaker opens while sandbox is asked
        if not engine.runtime.breakers.shuts(identity):
            with engine.database.transaction() as transaction:
                breakers.trip(transaction, identity, Opening(cause="cannot connect", chance=0.5))
                engine.runtime.breakers.read(transaction, [identity])
        return belongs(push)

    apns.answer_sandbox(shut_production)
    engine.work()
    assert engine.states() == {"active": 1000}
    assert engine.report().rejected == 0
    apns.answer_sandbox(belongs)
    with engine.database.transaction() as transaction:
        transaction.execute("DELETE FROM {s}.breakers")
        engine.runtime.breakers.read(transaction, [identity])
    engine.bring_forward()
    engine.run()
    assert engine.outcomes() == {"sent": 1000}


def test_what_the_other_environment_answers_to_probes_counts_against_its_credential(engine: Engine) -> None:
    apns = Apns(engine, sandbox=lambda n: True, production=lambda n: n > 50)
    apns.answer_sandbox(lambda push: BUSY)
    engine.add_devices(200)
    engine.enqueue()
    engine.start()
    engine.work()
    engine.runtime.watcher.look()
    shut = dict(engine.rows("SELECT credential, state FROM {s}.breakers"))
    assert shut == {sending_identity(engine, "sandbox"): "open"}


def test_the_other_credential_rests_when_its_provider_token_was_renewed_too_often(engine: Engine) -> None:
    apns = Apns(engine, sandbox=lambda n: True, production=lambda n: n > 2)
    apns.answer_sandbox(lambda push: Rejected(status=429, reason="TooManyProviderTokenUpdates"))
    engine.add_devices(20)
    engine.enqueue()
    engine.start()
    engine.work()
    assert engine.rows("SELECT credential, state FROM {s}.breakers") == [("key:TEAM123456/KEY1234567:sandbox", "open")]


def test_a_device_that_registered_anew_meanwhile_is_not_moved(engine: Engine) -> None:
    apns = Apns(engine, sandbox=lambda n: True, production=lambda n: False)

    def script(push: Push) -> Answer:
        with engine.database.transaction() as transaction:
            transaction.execute("UPDATE {s}.devices SET token = 'ab' || substr(token, 3)")
        return ACCEPTED

    apns.answer_sandbox(script)
    engine.add_devices(1)
    engine.enqueue()
    engine.run()
    assert engine.outcomes() == {"sent": 1}
    assert environments(engine) == {"production": 1}
    assert engine.rows("SELECT FROM {s}.changelog") == []


def test_probes_keep_to_the_rate(engine: Engine) -> None:
    apns = Apns(engine, sandbox=lambda n: True, production=lambda n: False)
    engine.add_devices(4)
    engine.enqueue(rate=2)
    began = time.monotonic()
    for _ in range(200):  # what comes too early waits in the database
        engine.run()
        if engine.outcomes() == {"sent": 4}:
            break
        time.sleep(0.1)
    assert engine.outcomes() == {"sent": 4}
    assert (apns.production, apns.sandbox) == (4, 4)
    assert time.monotonic() - began >= 3.0  # seven pushes after the first, two a second: it cannot be faster


def test_an_app_with_one_environment_cannot_be_healed(engine: Engine) -> None:
    with engine.database.transaction() as transaction:
        transaction.execute("DELETE FROM {s}.credentials WHERE environment = 'sandbox'")
    with pytest.raises(ConflictError, match="sender apps set-credential"):
        engine.sender.apps.set_healing(BUNDLE, True)
    assert engine.sender.apps.set_healing(BUNDLE, False).healing is False
