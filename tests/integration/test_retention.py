"""Retention on a real PostgreSQL: what goes, what stays, and who is never held up by it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from sender import InvalidSegmentError, Segment, Sender
from sender.cli import app as cli
from sender.doctor.findings import Status
from sender.doctor.storage import check_storage
from sender.engine import retention as steps
from sender.engine.housekeeping import Housekeeper
from sender.engine.tick import tick
from sender.planning.plan import InvalidCampaignError
from sender.settings import Settings
from sender.store import partitions
from sender.store.database import Database
from tests.integration.campaign_rows import APP, PAYLOAD, add_app, add_batch

TODAY = partitions.today()
SOON = datetime.now(UTC) + timedelta(days=2)
RECENT = TODAY - timedelta(days=10)
OLD = partitions.month_of(TODAY - timedelta(days=31))[0] - timedelta(days=15)  # its month ended over 30 days ago
ANCIENT = partitions.month_of(TODAY - timedelta(days=180))[0] - timedelta(days=15)

INSERT = "INSERT INTO {s}.deliveries (campaign_started_on, campaign_id, device_id, outcome) VALUES (%s, %s, %s, 'sent')"

Commands = Callable[..., Any]


class Ledger:
    """Campaigns of other times, with their rows."""

    def __init__(self, database: Database, sender: Sender, settings: Settings) -> None:
        self.database = database
        self.sender = sender
        self.settings = settings
        with database.transaction() as transaction:
            add_app(transaction)

    def campaign(self, key: str, day: date, *, sent: int = 20, rejected: int = 5, finished: bool = True) -> int:
        """A campaign that started on a day, with ledger rows and one batch; finished on the day after."""
        self.sender.campaigns.enqueue(APP, key=key, payload=PAYLOAD)
        with self.database.transaction() as transaction:
            partitions.ensure_ledger(transaction, day)
            [(id,)] = transaction.execute(
                "UPDATE {s}.campaigns SET state = %(state)s, started_on = %(day)s, started_at = %(day)s, "
                "created_at = %(day)s, cut_finished = true, cut_devices = %(all)s, audience_estimate = %(all)s, "
                "finished_at = CASE WHEN %(state)s = 'completed' THEN %(day)s::timestamptz + interval '1 day' END "
                "WHERE key = %(key)s RETURNING id",
                {"state": "completed" if finished else "running", "day": day, "key": key, "all": sent + rejected},
            ).fetchall()
            transaction.execute(
                "INSERT INTO {s}.deliveries (campaign_started_on, campaign_id, device_id, status, outcome, reason, at) "
                "SELECT %(day)s, %(id)s, n, CASE WHEN n > %(sent)s THEN 410 ELSE 200 END, "
                "CASE WHEN n > %(sent)s THEN 'rejected' ELSE 'sent' END, "
                "CASE WHEN n > %(sent)s THEN 'Unregistered' END, %(day)s FROM generate_series(1, %(all)s) AS n",
                {"day": day, "id": id, "sent": sent, "all": sent + rejected},
            )
            add_batch(
                transaction, id, sent + rejected, sent=sent, rejected=rejected, reasons={"Unregistered": rejected}
            )
        return int(id)

    def retain(self, *, rounds: int = 30, **settings: Any) -> None:
        """One round; more when somebody was in its way: an autovacuum, or another retention."""
        for _ in range(rounds):
            with capture_logs() as events:
                for _ in steps.retain(self.database, self.settings.model_copy(update=settings)):
                    pass
            if not any(event["event"] == "retention_deferred" for event in events):
                return
            time.sleep(0.1)

    def rows(self, statement: str, params: Any = None) -> list[Any]:
        with self.database.transaction() as transaction:
            return transaction.execute(statement, params).fetchall()

    def outcomes(self, campaign_id: int) -> dict[str, int]:
        return dict(
            self.rows(
                "SELECT outcome, count(*) FROM {s}.deliveries WHERE campaign_id = %s GROUP BY outcome", (campaign_id,)
            )
        )

    def months(self, parent: str = partitions.LEDGER) -> set[date]:
        with self.database.transaction() as transaction:
            return {month.first for month in partitions.months(transaction, parent)}

    def removed(self, key: str) -> bool:
        [(at,)] = self.rows("SELECT sent_removed_at FROM {s}.campaigns WHERE key = %s", (key,))
        return at is not None

    def tables(self) -> set[str]:
        return {
            name
            for (name,) in self.rows("SELECT tablename FROM pg_tables WHERE schemaname = %s", (self.database.schema,))
        }


@pytest.fixture
def ledger(database: Database, sender: Sender, settings: Settings) -> Ledger:
    return Ledger(database, sender, settings)


@pytest.fixture
def commands(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Runs `sender …` on the test's servers."""
    for name in ("database_url", "broker_url"):
        monkeypatch.setenv(f"SENDER_{name.upper()}", getattr(ledger.settings, name).get_secret_value())
    monkeypatch.setenv("SENDER_DATABASE_SCHEMA", ledger.database.schema)
    return lambda *words: CliRunner().invoke(cli, words, catch_exceptions=False)


def test_a_month_that_is_old_enough_loses_its_sent_rows_and_keeps_the_others(ledger: Ledger) -> None:
    old, recent = ledger.campaign("old", OLD), ledger.campaign("recent", RECENT)
    ledger.retain()
    assert ledger.outcomes(old) == {"rejected": 5}
    assert ledger.outcomes(recent) == {"sent": 20, "rejected": 5}
    assert (ledger.removed("old"), ledger.removed("recent")) == (True, False)
    assert not [name for name in ledger.tables() if name.endswith("_kept")]


def test_a_month_without_its_sent_rows_is_a_partition_like_the_others(ledger: Ledger) -> None:
    old = ledger.campaign("old", OLD)
    shape = "SELECT count(*) FROM pg_indexes WHERE schemaname = %s AND tablename = %s"
    checks = "SELECT count(*) FROM pg_constraint WHERE contype = 'c' AND conrelid = %s::regclass"
    name = f"deliveries_{OLD:%Y_%m}"
    before = ledger.rows(shape, (ledger.database.schema, name))
    ledger.retain()
    assert ledger.rows(shape, (ledger.database.schema, name)) == before == [(2,)]
    assert ledger.rows(checks, (f"{ledger.database.schema}.{name}",)) == [(0,)]
    insert = (
        "INSERT INTO {s}.deliveries (campaign_started_on, campaign_id, device_id, outcome) "
        "VALUES (%s, %s, 25, 'sent') ON CONFLICT DO NOTHING RETURNING 1"
    )
    assert ledger.rows(insert, (OLD, old)) == []  # still unique


def test_nothing_is_done_twice_and_two_at_once_do_no_harm(ledger: Ledger) -> None:
    ids = [ledger.campaign(f"old-{number}", OLD) for number in range(3)]
    threads = [threading.Thread(target=ledger.retain) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.retain()
    assert [ledger.outcomes(id) for id in ids] == [{"rejected": 5}] * 3
    before = ledger.rows("SELECT tableoid, ctid FROM {s}.deliveries")
    ledger.retain()
    assert ledger.rows("SELECT tableoid, ctid FROM {s}.deliveries") == before


def test_a_month_is_dropped_when_its_errors_are_old_enough_too(ledger: Ledger) -> None:
    ancient = ledger.campaign("ancient", ANCIENT)
    ledger.retain()
    assert ledger.outcomes(ancient) == {} and ANCIENT.replace(day=1) not in ledger.months()
    assert ledger.removed("ancient")


def test_a_month_stays_while_one_of_its_campaigns_has_not_finished(ledger: Ledger) -> None:
    ledger.campaign("done", ANCIENT)
    running = ledger.campaign("running", ANCIENT, finished=False)
    ledger.retain()
    assert ledger.outcomes(running) == {"sent": 20, "rejected": 5}
    assert not ledger.removed("done")


def test_what_is_empty_is_kept_for_ever(ledger: Ledger) -> None:
    ancient = ledger.campaign("ancient", ANCIENT)
    ledger.retain(retain_sent=None, retain_errors=None)
    assert ledger.outcomes(ancient) == {"sent": 20, "rejected": 5}
    assert ledger.rows("SELECT count(*) FROM {s}.batches") == [(1,)]


def test_rows_of_an_app_that_was_removed_go_too(ledger: Ledger) -> None:
    old = ledger.campaign("old", OLD)
    ledger.sender.apps.remove(APP)
    ledger.retain()
    assert ledger.outcomes(old) == {"rejected": 5}


def test_the_copy_goes_on_where_it_was_left(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "COPY_PAGES", 1)
    old = ledger.campaign("old", OLD, sent=2000, rejected=300)
    for _, _ in zip(range(4), steps.retain(ledger.database, ledger.settings), strict=False):
        pass
    assert ledger.outcomes(old) == {"sent": 2000, "rejected": 300}
    [(copied,)] = ledger.rows(f"SELECT count(*) FROM {{s}}.deliveries_{OLD:%Y_%m}_kept")
    [(noted,)] = ledger.rows(
        "SELECT obj_description(to_regclass(%s), 'pg_class')",
        (f"{ledger.database.schema}.deliveries_{OLD:%Y_%m}_kept",),
    )
    assert '"pages": 3' in noted or '"pages": 2' in noted
    ledger.retain()
    assert ledger.outcomes(old) == {"rejected": 300}
    assert copied < 300


def test_an_open_insert_into_another_month_is_not_waited_for_long_and_not_held_up(ledger: Ledger) -> None:
    """A worker's transaction that has inserted, and is still open, must be able to go on inserting."""
    old, recent = ledger.campaign("old", OLD), ledger.campaign("recent", RECENT)
    with ledger.database.transaction() as transaction:
        transaction.execute(INSERT, (RECENT, recent, 1001))
        ledger.retain(rounds=1)  # cannot have its lock; comes back all the same
        transaction.execute(INSERT, (RECENT, recent, 1002))
    assert ledger.outcomes(old) == {"sent": 20, "rejected": 5}
    assert not ledger.removed("old")
    ledger.retain()
    assert ledger.outcomes(old) == {"rejected": 5}
    assert ledger.outcomes(recent)["sent"] == 22


def test_months_of_the_changelog_go_when_they_are_asked_to(ledger: Ledger) -> None:
    with ledger.database.transaction() as transaction:
        partitions.ensure_changelog(transaction, ANCIENT)
        for day in (ANCIENT, ANCIENT - timedelta(days=100), RECENT):
            transaction.execute(
                "INSERT INTO {s}.changelog (at, kind, actor) VALUES (%s, 'registered', 'sender')", (day,)
            )
    ledger.retain()
    assert ledger.rows("SELECT count(*) FROM {s}.changelog") == [(3,)]
    ledger.retain(retain_changelog=180)
    assert ledger.rows("SELECT at::date FROM {s}.changelog") == [(RECENT,)]
    assert ANCIENT.replace(day=1) not in ledger.months(partitions.CHANGELOG)


def test_batches_are_folded_into_counts_that_the_report_goes_on_to_tell(ledger: Ledger) -> None:
    ledger.campaign("old", TODAY - timedelta(days=40))
    ledger.campaign("recent", RECENT)
    ledger.campaign("running", TODAY - timedelta(days=40), finished=False)
    before = ledger.sender.campaigns.show("old")
    ledger.retain()
    after = ledger.sender.campaigns.show("old")
    assert (after.sent, after.rejected, after.audience, after.by_reason) == (20, 5, 25, {"Unregistered": 5})
    assert (before.sent, before.rejected, before.audience, before.by_reason) == (20, 5, 25, {"Unregistered": 5})
    assert ledger.rows(
        "SELECT c.key FROM {s}.batches b JOIN {s}.campaigns c ON c.id = b.campaign_id ORDER BY c.id"
    ) == [("recent",), ("running",)]


def test_the_report_is_right_while_only_some_batches_are_deleted(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = ledger.campaign("old", TODAY - timedelta(days=40))
    with ledger.database.transaction() as transaction:
        for _ in range(4):
            add_batch(transaction, id, 10, sent=10)
        transaction.execute("UPDATE {s}.campaigns SET cut_devices = 65")
    monkeypatch.setattr(steps, "DELETE_BATCHES", 2)
    monkeypatch.setattr(steps, "MOST_CAMPAIGNS", 1)
    ledger.campaign("older", TODAY - timedelta(days=41))
    for _ in steps.retain(ledger.database, ledger.settings):
        report = ledger.sender.campaigns.show("old")
        assert (report.sent, report.rejected, report.audience) == (60, 5, 65)
    assert ledger.sender.campaigns.show("older").sent == 20
    assert ledger.rows("SELECT count(*) FROM {s}.batches") == [(0,)]


def test_limits_of_finished_campaigns_are_forgotten(ledger: Ledger) -> None:
    old = ledger.campaign("old", OLD)
    running = ledger.campaign("running", RECENT, finished=False)
    scopes = ["installation", "app:1", f"campaign:{old}", f"campaign:{running}", "campaign:999999"]
    ledger.rows("INSERT INTO {s}.limits (scope) SELECT unnest(%s::text[]) RETURNING 1", (scopes,))
    ledger.retain()
    left = {scope for (scope,) in ledger.rows("SELECT scope FROM {s}.limits")}
    assert left == {"installation", "app:1", f"campaign:{running}"}


class Clock:
    """A clock that is moved by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_housekeeping_goes_on_soon_with_what_it_left_over_and_rests_when_nothing_is(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "COPY_PAGES", 1)
    old = ledger.campaign("old", OLD, sent=500)
    clock = Clock()
    keeper = Housekeeper(clock)

    def slow(*_: Any) -> Iterator[None]:
        for step in steps.retain(ledger.database, ledger.settings):
            clock.now += 1.0  # more than a round's budget
            yield step

    monkeypatch.setattr("sender.engine.housekeeping.retain", slow)
    rounds = 0
    while ledger.outcomes(old).get("sent"):
        keeper.run(ledger.database, ledger.settings)
        clock.now += 2.0
        rounds += 1
        assert rounds < 100
    assert rounds > 3


def test_housekeeping_makes_partitions_ahead_while_somebody_inserts(ledger: Ledger) -> None:
    recent = ledger.campaign("recent", TODAY)
    last = max(ledger.months())
    with ledger.database.transaction() as transaction:
        transaction.execute(f"DROP TABLE {{s}}.deliveries_{last:%Y_%m}")
        transaction.execute(f"DROP TABLE {{s}}.changelog_{last:%Y_%m}")
    with ledger.database.transaction() as transaction:
        transaction.execute(INSERT, (TODAY, recent, 2001))
        transaction.execute("INSERT INTO {s}.changelog (kind, actor) VALUES ('registered', 'sender')")
        Housekeeper().run(ledger.database, ledger.settings)
        assert last in ledger.months() and last in ledger.months(partitions.CHANGELOG)
        transaction.execute(INSERT, (TODAY, recent, 2002))
    assert ledger.outcomes(recent)["sent"] == 22


# --- campaigns that leave out whom another was sent to ---------------------------------------------------------------


def test_whoever_refers_to_rows_that_are_gone_is_refused_at_enqueue(ledger: Ledger) -> None:
    ledger.campaign("old", OLD)
    ledger.retain()
    with pytest.raises(InvalidCampaignError, match=r"'old' of .* is not kept any more.*SENDER_RETAIN_SENT"):
        ledger.sender.campaigns.enqueue(APP, key="again", payload=PAYLOAD, audience=Segment.not_sent("old"))
    with pytest.raises(InvalidCampaignError, match="not kept"):
        ledger.sender.campaigns.count(APP, audience=Segment.all() & ~Segment.not_sent("old"))
    with pytest.raises(InvalidSegmentError, match="not kept"):
        ledger.sender.devices.count(APP, Segment.not_sent("old"))
    assert ledger.rows("SELECT key FROM {s}.campaigns") == [("old",)]


def test_a_campaign_that_is_referred_to_keeps_its_rows_until_the_other_is_over(ledger: Ledger) -> None:
    kept, plain = ledger.campaign("kept", OLD), ledger.campaign("plain", OLD)
    later = ledger.sender.campaigns.enqueue(
        APP, key="later", payload=PAYLOAD, audience=Segment.not_sent("kept"), send_at=SOON
    )
    ledger.retain()
    assert ledger.outcomes(kept) == {"sent": 20, "rejected": 5}
    assert ledger.outcomes(plain) == {"rejected": 5}
    assert (ledger.removed("kept"), ledger.removed("plain")) == (False, True)
    ledger.retain()
    assert ledger.outcomes(kept) == {"sent": 20, "rejected": 5}
    later.cancel()
    ledger.retain()
    assert ledger.outcomes(kept) == {"rejected": 5} and ledger.removed("kept")


def test_a_month_that_is_referred_to_is_not_dropped(ledger: Ledger) -> None:
    ancient = ledger.campaign("ancient", ANCIENT)
    later = ledger.sender.campaigns.enqueue(
        APP, key="later", payload=PAYLOAD, audience=Segment.not_sent("ancient"), draft=True
    )
    ledger.retain()
    assert ledger.outcomes(ancient) == {"sent": 20, "rejected": 5}
    later.cancel()
    ledger.retain()
    assert ledger.outcomes(ancient) == {}


def test_a_campaign_enqueued_while_the_month_is_copied_keeps_what_it_needs(ledger: Ledger) -> None:
    old = ledger.campaign("old", OLD)
    going = steps.retain(ledger.database, ledger.settings)
    next(going)
    next(going)  # the copy is complete, and without the rows
    ledger.sender.campaigns.enqueue(APP, key="later", payload=PAYLOAD, audience=Segment.not_sent("old"), send_at=SOON)
    for _ in going:
        pass
    ledger.retain()
    assert ledger.outcomes(old) == {"sent": 20, "rejected": 5}
    assert not ledger.removed("old")


def test_nothing_is_removed_under_an_enqueue_that_is_not_committed_yet(ledger: Ledger, postgres_url: str) -> None:
    old = ledger.campaign("old", OLD)
    with psycopg.connect(postgres_url) as connection:
        ledger.sender.campaigns.enqueue(
            APP, key="later", payload=PAYLOAD, audience=Segment.not_sent("old"), send_at=SOON, connection=connection
        )
        ledger.retain(rounds=1)
        assert ledger.outcomes(old) == {"sent": 20, "rejected": 5}
    ledger.retain()
    assert ledger.outcomes(old) == {"sent": 20, "rejected": 5}


def test_a_repeated_enqueue_stays_a_repeat_after_the_rows_are_gone(ledger: Ledger) -> None:
    ledger.campaign("old", OLD)
    again: dict[str, Any] = {"key": "later", "payload": PAYLOAD, "audience": Segment.not_sent("old")}
    ledger.sender.campaigns.enqueue(APP, **again).cancel()
    ledger.retain()
    assert ledger.removed("old")
    assert ledger.sender.campaigns.enqueue(APP, **again).state == "cancelled"


def test_a_scheduled_campaign_whose_reference_is_gone_all_the_same_fails_and_reaches_nobody(ledger: Ledger) -> None:
    ledger.campaign("old", OLD)
    ledger.sender.campaigns.enqueue(APP, key="later", payload=PAYLOAD, audience=Segment.not_sent("old"))
    ledger.rows("UPDATE {s}.campaigns SET sent_removed_at = now() WHERE key = 'old' RETURNING 1")
    assert tick(ledger.database) == []
    report = ledger.sender.campaigns.show("later")
    assert report.state == "failed" and "is not kept any more" in (report.state_reason or "")
    assert report.audience == 0


# --- what the log says of it ------------------------------------------------------------------------------------------


def test_the_activity_log_says_what_it_does_not_have_any_more(ledger: Ledger, commands: Commands) -> None:
    ledger.campaign("ancient", ANCIENT)
    ledger.campaign("old", OLD)
    ledger.campaign("recent", RECENT)
    ledger.retain()
    activity = ledger.sender.activity
    assert [(each.campaign, each.errors) for each in activity.removed()] == [("old", False), ("ancient", True)]
    everything = commands("activity", "--all", "--limit", "1000")
    assert (
        "the successful deliveries of 'old'" in everything.stderr and "all deliveries of 'ancient'" in everything.stderr
    )
    assert "successful" not in commands("activity", "--limit", "1000").stderr
    assert commands("activity", "--campaign", "recent", "--all").stderr == ""
    nothing = commands("activity", "--campaign", "ancient")
    assert "not kept any more" in nothing.stdout and "succeeded" not in nothing.stdout


def test_the_command_tells_what_is_due_and_does_it_when_asked(ledger: Ledger, commands: Commands) -> None:
    ledger.campaign("ancient", ANCIENT)
    ledger.campaign("done", OLD)
    running = ledger.campaign("running", OLD, finished=False)
    told = json.loads(commands("retention", "--json").stdout)
    months = {(each["table"], each["month"]): each for each in told["months"]}
    ancient = months["deliveries", str(ANCIENT.replace(day=1))]
    old = months["deliveries", str(OLD.replace(day=1))]
    assert (ancient["next"], ancient["held_by"]) == ("remove_sent", None)
    assert "'running' of that month has not finished" in old["held_by"]
    assert months["deliveries", str(TODAY.replace(day=1))]["on"] > str(TODAY)
    assert told["tables"]["batches"] > 0
    shown = commands("retention", "--run").stdout
    assert f"{ANCIENT:%Y-%m}" not in shown and "sent 30 days, errors 180 days, changelog for ever" in shown
    assert "has not finished" in shown
    assert ledger.outcomes(running) == {"sent": 20, "rejected": 5}


def test_the_doctor_says_how_large_it_is_and_what_should_have_gone(ledger: Ledger) -> None:
    ledger.campaign("ancient", ANCIENT)
    ledger.campaign("running", OLD, finished=False)
    findings = list(check_storage(ledger.settings))
    assert findings[0].status is Status.OK and "ledger" in findings[0].message
    assert f"next deliveries {ANCIENT:%Y-%m} loses its sent rows" in findings[0].message
    assert any("should have been cleaned" in each.message and "'running'" in each.advice for each in findings)
    ledger.rows("UPDATE {s}.campaigns SET finished_at = now() RETURNING 1")
    ledger.retain()
    assert [each.status for each in check_storage(ledger.settings)] == [Status.OK]


# --- partitions that must be there ------------------------------------------------------------------------------------


def test_a_campaign_that_starts_makes_its_partition_beside_an_open_insert(ledger: Ledger) -> None:
    old = ledger.campaign("old", OLD)
    ledger.sender.campaigns.enqueue(APP, key="now", payload=PAYLOAD)
    with ledger.database.transaction() as transaction:
        transaction.execute(f"DROP TABLE {{s}}.deliveries_{TODAY:%Y_%m}")
    with ledger.database.transaction() as transaction:
        transaction.execute(INSERT, (OLD, old, 3001))
        assert [key for _, key in tick(ledger.database)] == ["now"]
        assert TODAY.replace(day=1) in ledger.months()
        transaction.execute(INSERT, (OLD, old, 3002))


def test_a_campaign_whose_partition_cannot_be_made_waits_for_it(ledger: Ledger) -> None:
    ledger.sender.campaigns.enqueue(APP, key="now", payload=PAYLOAD)
    with ledger.database.transaction() as transaction:
        transaction.execute(f"DROP TABLE {{s}}.deliveries_{TODAY:%Y_%m}")
    with ledger.database.transaction() as transaction:
        transaction.execute("LOCK TABLE ONLY {s}.deliveries IN SHARE UPDATE EXCLUSIVE MODE")
        assert tick(ledger.database) == []
        assert ledger.sender.campaigns.load("now").state == "scheduled"
    assert [key for _, key in tick(ledger.database)] == ["now"]
    assert ledger.sender.campaigns.load("now").state == "running"
