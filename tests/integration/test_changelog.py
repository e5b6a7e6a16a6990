"""The changelog as a feed, on a real PostgreSQL."""

from __future__ import annotations

import re
import threading

import psycopg
import pytest

from sender import Sender
from sender.cli.changelog import _follow
from sender.errors import InvalidInputError, NotFoundError
from sender.model import Actor, ChangeKind
from sender.store import apps, changelog
from sender.store.changelog import NewChange
from sender.store.database import Database

APP = "com.example.news"


@pytest.fixture(autouse=True)
def app_id(database: Database) -> int:
    with database.transaction() as transaction:
        return apps.add(transaction, APP) or 0


def row(app_id: int, reason: str) -> NewChange:
    return NewChange(kind=ChangeKind.REGISTERED, actor=Actor.APPLICATION, app_id=app_id, reason=reason)


def test_a_row_that_commits_late_is_not_passed_over(
    sender: Sender, database: Database, postgres_url: str, app_id: int
) -> None:
    with psycopg.connect(postgres_url) as early, psycopg.connect(postgres_url) as late:
        with database.join(early) as transaction:
            changelog.append(transaction, [row(app_id, "began first")])
        with database.join(late) as transaction:
            changelog.append(transaction, [row(app_id, "began second")])
        late.commit()
        first = sender.changelog.read()
        assert [change.reason for change in first] == []  # the second row waits for the first
        assert [change.reason for change in sender.changelog.latest()] == ["began second"]
        assert sender.changelog.latest()[0].cursor is None
        early.commit()
    found = [change.reason for change in sender.changelog.read(after=first.cursor)]
    assert found == ["began first", "began second"]


def test_who_follows_from_now_on_does_not_begin_with_the_oldest_row_while_the_newest_wait(
    sender: Sender,
    database: Database,
    postgres_url: str,
    app_id: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with psycopg.connect(postgres_url) as early:
        for reason in ("row 1", "row 2"):
            with database.transaction() as transaction:
                changelog.append(transaction, [row(app_id, reason)])
        early.execute("SELECT pg_current_xact_id()")
        for reason in ("row 3", "row 4"):
            with database.transaction() as transaction:
                changelog.append(transaction, [row(app_id, reason)])
        waits = iter([early.commit])

        def sleep(_seconds: float) -> None:
            next(waits, _interrupt)()

        monkeypatch.setattr("sender.cli.changelog.time.sleep", sleep)
        _follow(sender, sender.changelog.latest(2), None, 2, {}, as_json=False)
    assert re.findall(r"row \d", capsys.readouterr().out) == ["row 3", "row 4"]


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_readers_see_every_row_once_while_many_writers_commit_in_any_order(
    sender: Sender, database: Database, app_id: int
) -> None:
    writers, rounds = 4, 25
    finished = threading.Event()

    def write(who: int) -> None:
        for n in range(rounds):
            with database.transaction() as transaction:
                changelog.append(transaction, [row(app_id, f"{who}-{n}")])
                if n % 3 == who % 3:
                    transaction.execute("SELECT pg_sleep(0.01)")
                changelog.append(transaction, [row(app_id, f"{who}-{n}b")])

    seen: list[str | None] = []

    def read() -> None:
        cursor = None
        while True:
            last = finished.is_set()
            page = sender.changelog.read(cursor, limit=7)
            seen.extend(change.reason for change in page)
            cursor = page.cursor
            if last and not len(page):
                return

    reader = threading.Thread(target=read)
    threads = [threading.Thread(target=write, args=(who,)) for who in range(writers)]
    for thread in [reader, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    finished.set()
    reader.join()
    expected = {f"{who}-{n}{b}" for who in range(writers) for n in range(rounds) for b in ("", "b")}
    assert len(seen) == len(expected)
    assert set(seen) == expected


def test_pages_follow_one_another_by_their_cursors(sender: Sender, database: Database, app_id: int) -> None:
    with database.transaction() as transaction:
        changelog.append(transaction, [row(app_id, str(n)) for n in range(5)])
    first = sender.changelog.read(limit=3)
    second = sender.changelog.read(first.cursor, limit=3)
    assert [change.reason for change in [*first, *second]] == ["0", "1", "2", "3", "4"]
    end = sender.changelog.read(second.cursor)
    assert (len(end), end.cursor) == (0, second.cursor)
    assert len(sender.changelog.read("0-0")) == 5


def test_filters_must_all_hold(sender: Sender) -> None:
    sender.devices.register(APP, "abcd01", user="u")
    sender.devices.register(APP, "abcd02", user="v")
    assert len(sender.changelog.read(user="u", app=APP)) == 1
    assert len(sender.changelog.read(device="abcd02")) == 1
    assert len(sender.changelog.read(device="abcd")) == 2
    assert len(sender.changelog.read(user="u", device="abcd02")) == 0


@pytest.mark.parametrize(
    "only", [{"user": "x"}, {"device": "ffff"}, {"campaign": "x"}, {"app": "x"}], ids=lambda only: next(iter(only))
)
def test_an_unknown_filter_is_an_error_and_not_an_empty_feed(sender: Sender, only: dict[str, str]) -> None:
    with pytest.raises(NotFoundError):
        sender.changelog.read(**only)  # type: ignore[arg-type]


@pytest.mark.parametrize("cursor", ["", "x", "1", "1-", "-1", "1-x", "1--1", "9" * 30 + "-1", "²-1"])
def test_a_malformed_cursor_is_refused(sender: Sender, cursor: str) -> None:
    with pytest.raises(InvalidInputError, match="cursor"):
        sender.changelog.read(cursor)
