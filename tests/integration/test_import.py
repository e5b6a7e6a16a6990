"""Importing devices into a real PostgreSQL."""

from __future__ import annotations

import gzip
import io
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sender import Sender
from sender.engine.housekeeping import Housekeeper
from sender.errors import InvalidInputError, NotFoundError
from sender.imports import ImportReport, InactiveAs, Options, Stage
from sender.model import ChangeKind, Environment
from sender.policy.states import DeviceState
from sender.settings import Settings
from sender.store import apps
from sender.store import imports as store
from sender.store.database import Database
from sender.store.imports import Staging

APP = "com.example.news"


@pytest.fixture(autouse=True)
def app(database: Database) -> None:
    with database.transaction() as transaction:
        apps.add(transaction, APP)


def load(sender: Sender, text: str, options: Options | None = None) -> ImportReport:
    return sender.devices.import_file(io.BytesIO(text.encode()), app=APP, options=options)


def put(database: Database, assignments: str) -> None:
    with database.transaction() as transaction:
        transaction.execute(f"UPDATE {{s}}.devices SET {assignments}")


def staging_tables(database: Database) -> list[str]:
    with database.transaction() as transaction:
        found = transaction.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename LIKE 'import%%'", [database.schema]
        )
        return [name for (name,) in found]


def test_a_file_is_imported_and_importing_it_again_changes_nothing(sender: Sender, database: Database) -> None:
    text = "token,user,registered_at,plan\n" + "".join(
        f"{n:064x},u{n % 7},2026-01-01T00:00:00Z,{'pro' if n % 2 else ''}\n" for n in range(500)
    )
    first = load(sender, text)
    assert (first.lines, first.added, first.rejected) == (500, 500, 0)
    changes = len(sender.changelog.read())
    again = load(sender, text)
    assert (again.added, again.updated, again.unchanged) == (0, 0, 500)
    assert len(sender.changelog.read()) == changes == 500
    device = sender.devices.show(f"{1:064x}")
    assert (device.user, device.attributes, device.registered_at) == (
        "u1",
        {"plan": "pro"},
        datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert staging_tables(database) == []


def test_slices_meet_at_their_edges(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sender.imports.run.SLICE", 3)
    monkeypatch.setattr("sender.imports.run._BLOCK", 4)
    text = "token,user\n" + "".join(f"{n:04x},u{n}\n" for n in [*range(11), *range(11)])
    report = load(sender, text)
    assert (report.lines, report.added, report.duplicates) == (22, 11, 11)
    assert load(sender, text).unchanged == 11


def test_without_the_column_the_registration_is_unknown(sender: Sender) -> None:
    load(sender, "token\nabcd\n")
    device = sender.devices.show("abcd")
    assert (device.registered_at, device.last_seen_at) == (None, None)


def test_duplicates_resolve_by_the_newest_registration_and_then_by_the_last_line(sender: Sender) -> None:
    report = load(
        sender,
        "token,user,registered_at\nabcd,newest,2026-03-01\nabcd,older,2026-02-01\nabcd,unknown,\n"
        "ef01,first,2026-01-01\nef01,second,2026-01-01\n",
    )
    assert (report.added, report.duplicates) == (2, 3)
    assert sender.devices.show("abcd").user == "newest"
    assert sender.devices.show("ef01").user == "second"


@pytest.mark.parametrize("state", ["invalid", "quarantined", "opted_out"])
def test_importing_revives_nothing(sender: Sender, database: Database, state: str) -> None:
    for text in ("token\nabcd\n", "token,registered_at\nabcd,2026-01-01\n", "token,registered_at\nabcd,2020-01-01\n"):
        load(sender, text)
        put(database, f"state = '{state}'")
        load(sender, text)
        assert sender.devices.show("abcd").state == state


def test_a_newer_registration_in_the_row_revives(sender: Sender, database: Database) -> None:
    load(sender, "token,registered_at\nabcd,2026-01-01\n")
    put(database, "state = 'invalid', stale_410_campaign_id = 7")
    report = load(sender, "token,registered_at\nabcd,2026-01-02\n")
    assert report.updated == 1
    assert sender.devices.show("abcd").state is DeviceState.ACTIVE
    assert [change.kind for change in sender.changelog.read()] == [ChangeKind.IMPORTED, ChangeKind.REVIVED]


def test_a_row_that_is_older_than_what_is_known_says_nothing(sender: Sender) -> None:
    sender.devices.register(APP, "abcd", user="now", attributes={"plan": "pro"})
    report = load(sender, "token,user,registered_at,plan\nabcd,then,2020-01-01,free\n")
    assert (report.outdated, report.updated) == (1, 0)
    device = sender.devices.show("abcd")
    assert (device.user, device.attributes) == ("now", {"plan": "pro"})


def test_a_registration_in_the_future_counts_as_now(sender: Sender) -> None:
    soon = datetime.now(UTC).timestamp() + 3600
    load(sender, f"token,registered_at\nabcd,{soon}\n")
    registered_at = sender.devices.show("abcd").registered_at
    assert registered_at is not None
    assert registered_at <= datetime.now(UTC)


def test_a_row_moves_owner_and_environment_and_says_so(sender: Sender) -> None:
    load(sender, "token,user,plan,age\nabcd,first,pro,7\n")
    load(sender, "token,user,environment,plan\nabcd,second,sandbox,free\n")
    device = sender.devices.show("abcd")
    assert (device.user, device.environment, device.attributes) == (
        "second",
        Environment.SANDBOX,
        {"plan": "free", "age": "7"},
    )
    assert [change.kind for change in sender.changelog.read(user="first")] == [ChangeKind.IMPORTED, ChangeKind.MOVED]
    assert [change.kind for change in sender.changelog.read(user="second")] == [
        ChangeKind.MOVED,
        ChangeKind.ENVIRONMENT_CHANGED,
    ]


def test_what_a_row_does_not_say_stays(sender: Sender) -> None:
    sender.devices.register(APP, "abcd", user="u", environment="sandbox", locale="fr-FR", attributes={"plan": "pro"})
    load(sender, "token,user,locale,plan\nabcd,,,\n", Options(environment=None))
    device = sender.devices.show("abcd")
    assert (device.user, device.environment, device.locale, device.attributes) == (
        "u",
        "sandbox",
        "fr-FR",
        {"plan": "pro"},
    )


def test_the_environment_option_is_for_rows_that_name_none(sender: Sender) -> None:
    load(sender, "token,environment\nabcd,\nef01,production\n", Options(environment=Environment.SANDBOX))
    assert sender.devices.show("abcd").environment == "sandbox"
    assert sender.devices.show("ef01").environment == "production"


def test_inactive_rows_are_known_and_not_sent_to(sender: Sender) -> None:
    load(sender, "token,active\nabcd,f\n")
    assert sender.devices.show("abcd").state is DeviceState.QUARANTINED
    sender.devices.register(APP, "abcd")
    load(sender, "token,active\nabcd,f\n")
    assert sender.devices.show("abcd").state is DeviceState.ACTIVE  # it registered since
    assert load(sender, "token,active\nef01,0\n", Options(inactive_as=InactiveAs.SKIP)).skipped == 1
    assert sender.devices.find("ef01") == []


def test_bad_lines_go_to_a_file_of_their_own_and_good_ones_land(sender: Sender, tmp_path: Path) -> None:
    file = tmp_path / "devices.csv.gz"
    file.write_bytes(gzip.compress(b"token,user\nabcd,u1\nabc,u2\nef01,u3\n"))
    rejects = tmp_path / "devices.csv.gz.rejects.csv"
    rejects.touch(mode=0o644)  # of an import before, made readable
    report = sender.devices.import_file(file, app=APP)
    assert (report.added, report.rejected, report.rejects) == (2, 1, rejects)
    assert rejects.read_text().splitlines()[1].startswith('3,"it has an odd number of hex digits')
    assert rejects.read_text().splitlines()[1].endswith(",abc,u2")
    assert rejects.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("bad", [1, 5_000])
def test_nothing_lands_when_there_is_no_room_for_the_bad_lines(
    sender: Sender, database: Database, tmp_path: Path, bad: int
) -> None:
    (tmp_path / "devices.csv").write_text("token\nabcd\n" + "bad\n" * bad)
    with pytest.raises(InvalidInputError, match="/dev/full: the bad lines cannot be written there"):
        sender.devices.import_file(tmp_path / "devices.csv", app=APP, rejects=Path("/dev/full"))
    assert sum(sender.devices.count(APP).values()) == 0
    assert staging_tables(database) == []


def test_a_file_that_breaks_off_leaves_nothing_behind(
    sender: Sender, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sender.imports.run._BLOCK", 100)
    whole = gzip.compress(b"token\n" + b"".join(f"{n:064x}\n".encode() for n in range(20_000)))
    with pytest.raises(InvalidInputError, match="cut off"):
        sender.devices.import_file(io.BytesIO(whole[:-100]), app=APP)
    assert sum(sender.devices.count(APP).values()) == 0
    assert staging_tables(database) == []


def test_a_merge_that_was_interrupted_is_completed_by_a_repeat(
    sender: Sender, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sender.imports.run.SLICE", 10)
    text = "token,user\n" + "".join(f"{n:04x},u{n}\n" for n in range(100))
    merge = Staging.merge

    def fail(staging: Staging, first: int, last: int) -> store.Merged:
        if first > 50:
            raise RuntimeError("the machine went away")
        return merge(staging, first, last)

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "merge", fail)
        with pytest.raises(RuntimeError):
            load(sender, text)
    landed = sum(sender.devices.count(APP).values())
    report = load(sender, text)
    assert landed == 50
    assert (report.unchanged, report.added) == (50, 50)
    assert len(sender.changelog.read()) == 100
    assert staging_tables(database) == []


def test_tables_of_imports_that_died_long_ago_are_dropped(sender: Sender, database: Database) -> None:
    with database.transaction() as transaction:
        transaction.execute("CREATE TABLE {s}.import_1500000000_0123abcd (n int)")
        transaction.execute("CREATE TABLE {s}.import_1500000000_0123abcd_sorted (n int)")
        transaction.execute("CREATE TABLE {s}.import_of_mine (n int)")
    load(sender, "token\nabcd\n")
    assert staging_tables(database) == ["import_of_mine"]


def test_tables_of_imports_that_died_long_ago_are_dropped_without_another_import(
    settings: Settings, database: Database
) -> None:
    with database.transaction() as transaction:
        transaction.execute("CREATE TABLE {s}.import_1500000000_0123abcd (token text)")
        transaction.execute(f"CREATE TABLE {{s}}.import_{int(time.time())}_0123abcd (token text)")
    Housekeeper().run(database, settings)
    assert [name for name in staging_tables(database) if name.startswith("import_15")] == []
    assert len(staging_tables(database)) == 1


def test_an_export_can_be_imported_elsewhere(sender: Sender, database: Database, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from sender.cli import app

    with database.transaction() as transaction:
        apps.add(transaction, "com.example.copy")
    sender.devices.register(APP, "abcd", user="u", locale="fr-FR", attributes={"n": 7, "deep": {"x": [1]}})
    sender.devices.register(APP, "ef01")
    sender.devices.opt_out(APP, "ef01")
    environment = {"SENDER_DATABASE_URL": database.url, "SENDER_DATABASE_SCHEMA": database.schema}
    for kind in ("csv", "jsonl"):
        file = tmp_path / f"devices.{kind}"
        done = CliRunner().invoke(
            app, ["devices", "export", "--app", APP, "--format", kind, "-o", str(file)], env=environment
        )
        assert done.exit_code == 0
        done = CliRunner().invoke(app, ["devices", "import", str(file), "--app", "com.example.copy"], env=environment)
        assert done.exit_code == 0, done.output
    copy = sender.devices.show("abcd", app="com.example.copy")
    assert (copy.user, copy.locale, copy.attributes) == ("u", "fr-FR", {"n": 7, "deep": {"x": [1]}})
    assert sender.devices.show("ef01", app="com.example.copy").state is DeviceState.OPTED_OUT


def test_progress_is_told_for_both_stages(sender: Sender, tmp_path: Path) -> None:
    file = tmp_path / "devices.csv"
    file.write_text("token\n" + "".join(f"{n:04x}\n" for n in range(1000)))
    told: list[tuple[Stage, int, int | None]] = []
    sender.devices.import_file(file, app=APP, progress=lambda *step: told.append(step))
    assert told[0] == (Stage.READING, file.stat().st_size, file.stat().st_size)
    assert told[-1] == (Stage.MERGING, 1000, 1000)


def test_an_unknown_app_and_a_rejects_file_that_is_the_source_are_refused(sender: Sender, tmp_path: Path) -> None:
    file = tmp_path / "devices.csv"
    file.write_text("token\nabcd\nbad\n")
    (tmp_path / "link.csv").symlink_to(file)
    with pytest.raises(NotFoundError):
        sender.devices.import_file(file, app="com.example.unknown")
    for same in (file, tmp_path / ".." / tmp_path.name / "devices.csv", tmp_path / "link.csv"):
        with pytest.raises(InvalidInputError, match="--rejects"):
            sender.devices.import_file(file, app=APP, rejects=same)
    assert file.read_text() == "token\nabcd\nbad\n"
