"""Files to import: whatever they hold, a clear refusal with nothing changed, or a report that adds up."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, target
from hypothesis import strategies as st

from sender.client import Sender
from sender.errors import InvalidInputError
from sender.imports import AttributeType, ImportReport, Options
from sender.settings import Settings
from sender.store import apps
from sender.store.database import Database
from tests.fuzz.profile import awkward, fuzz, json_values, raw_texts, texts, tokens

BUNDLE = "com.example.fuzz"
HEADER = ["token", "user", "environment", "locale", "timezone", "registered_at", "last_seen_at", "active", "state"]
GOOD: dict[str, str] = {
    "user": "u-1",
    "environment": "production",
    "locale": "fr-FR",
    "timezone": "Europe/Paris",
    "registered_at": "2026-01-01T00:00:00Z",
    "last_seen_at": "1785060900",
    "active": "true",
    "state": "active",
}


class Place:
    """One app, and what the database says of it."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.sender = Sender(settings=settings)
        self.database = database
        with database.transaction() as transaction:
            self.app_id = apps.add(transaction, BUNDLE)

    def row(self, statement: str) -> Any:
        with self.database.transaction() as transaction:
            return transaction.execute(statement).fetchone()

    def devices(self) -> int:
        return int(self.row("SELECT count(*) FROM {s}.devices")[0])

    def leftovers(self) -> int:
        """Tables of imports that are still there."""
        statement = (
            "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            f"WHERE n.nspname = '{self.database.schema}' AND c.relkind = 'r' AND c.relname LIKE 'import\\_%'"
        )
        return int(self.row(statement)[0])

    def run(self, data: bytes, options: Options | None = None) -> ImportReport | None:
        """Import; whatever the bytes, the report and the database agree. None: refused, and nothing changed."""
        before = self.devices()
        try:
            report = self.sender.devices.import_file(io.BytesIO(data), app=BUNDLE, options=options)
        except InvalidInputError as error:
            assert self.devices() == before
            assert str(error).strip()
            return None
        finally:
            assert self.leftovers() == 0
        parts = (
            report.added,
            report.updated,
            report.unchanged,
            report.outdated,
            report.duplicates,
            report.skipped,
            report.rejected,
        )
        assert min(parts) >= 0
        assert report.lines == sum(parts)
        assert self.devices() == before + report.added
        assert len(report.first_bad_lines) == min(report.rejected, 10)
        for bad in report.first_bad_lines:
            assert bad.line >= 1 and bad.reason
        return report

    def readable(self) -> None:
        """Everything that landed can be read back, and is in form."""
        with self.sender.devices.export(BUNDLE) as devices:
            for device in devices:
                assert bytes.fromhex(device.token).hex() == device.token
                json.dumps(device.attributes, allow_nan=False).encode()
                assert device.registered_at is None or isinstance(device.registered_at, datetime)


@pytest.fixture
def place(settings: Settings, database: Database) -> Iterator[Place]:
    place = Place(settings, database)
    yield place
    place.readable()
    place.sender.close()


cells = st.one_of(st.sampled_from(list(GOOD.values())), texts)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, str]:
    """A good row with a few cells exchanged for anything."""
    row = {"token": draw(tokens), **GOOD, "plan": "pro"}
    for name in draw(st.lists(st.sampled_from([*row]), max_size=3)):
        row[name] = draw(cells)
    return row


@st.composite
def csv_files(draw: st.DrawFn) -> bytes:
    file = io.StringIO()
    writer = csv.writer(
        file,
        delimiter=draw(st.sampled_from(",;\t|")),
        lineterminator=draw(st.sampled_from(["\n", "\r\n", "\r"])),
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
    )
    lines = draw(st.lists(rows(), min_size=1, max_size=6))
    header = [*lines[0]]
    if draw(st.integers(0, 5)) == 0:
        header[draw(st.integers(0, len(header) - 1))] = draw(cells)  # a column twice, or one of an odd name
    writer.writerow(header)
    for line in lines:
        fields = [*line.values()]
        if draw(st.integers(0, 9)) == 0:
            fields = fields[: draw(st.integers(0, 12))]
        writer.writerow(fields)
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf", b"\n\n"])) + file.getvalue().encode("utf-8", "surrogatepass")


@st.composite
def jsonl_files(draw: st.DrawFn) -> bytes:
    lines = []
    for row in draw(st.lists(rows(), min_size=1, max_size=6)):
        record: dict[str, Any] = dict(row)
        for name in draw(st.lists(st.sampled_from([*row, "attributes", "x"]), max_size=3)):
            record[name] = draw(json_values)
        record |= draw(st.dictionaries(raw_texts, json_values, max_size=2))
        lines.append(json.dumps(record, ensure_ascii=draw(st.booleans())))
    return ("\n".join(lines) + draw(st.sampled_from(["", "\n", "\n\n{", "\n[1]\nnull\n"]))).encode(
        errors="surrogatepass"
    )


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file that was cut, mixed with other bytes, or packed and cut."""
    data = bytearray(draw(st.one_of(csv_files(), jsonl_files())))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(
            st.one_of(st.binary(max_size=4), st.sampled_from([b"\0", b'"', b"\r", b"\xff", b"\xed\xa0\x80", b"\n\n"]))
        )
    if draw(st.booleans()):
        data = bytearray(gzip.compress(bytes(data), 1))
        data = data[: len(data) - draw(st.sampled_from([0, 0, 1, 8, 12, 30]))]
        if draw(st.integers(0, 4)) == 0 and data:
            data[draw(st.integers(0, len(data) - 1))] ^= 0xFF
    return bytes(data)


options = st.builds(
    Options,
    columns=st.dictionaries(st.one_of(st.sampled_from([*GOOD, "plan"]), awkward), st.sampled_from(["token", "-", "x"])),
    types=st.dictionaries(st.sampled_from(["plan", "x", "user"]), st.sampled_from(list(AttributeType)), max_size=2),
)


@fuzz(40)
@given(csv_files())
def test_any_csv(place: Place, data: bytes) -> None:
    report = place.run(data)
    target(float(report.added if report else 0))


@fuzz(40)
@given(jsonl_files())
def test_any_jsonl(place: Place, data: bytes) -> None:
    place.run(data)


@fuzz(40)
@given(damaged())
def test_any_damaged_file(place: Place, data: bytes) -> None:
    place.run(data)


@fuzz(40)
@given(st.one_of(csv_files(), jsonl_files()), options)
def test_any_mapping_of_columns_and_types(place: Place, data: bytes, wanted: Options) -> None:
    place.run(data, wanted)


@fuzz(30)
@given(st.binary(max_size=400))
def test_any_bytes(place: Place, data: bytes) -> None:
    place.run(data)


def test_every_awkward_text_in_every_column(place: Place) -> None:
    from tests.fuzz.profile import AWKWARD

    header = [*HEADER, "authorization", "attributes", "plan"]
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(header)
    number = 0
    for name in header:
        for text in AWKWARD:
            number += 1
            row = {"token": f"{number:064x}", **GOOD, "authorization": "", "attributes": "", "plan": "pro", name: text}
            writer.writerow([row[each] for each in header])
    report = place.run(file.getvalue().encode())
    assert report is not None and report.lines == number
    assert report.added > 150 and report.rejected > 500


def test_a_cell_of_many_megabytes_is_a_bad_line_and_the_rest_lands(place: Place, tmp_path: Path) -> None:
    giant = "x" * 5_000_000
    data = f"token,plan\n{1:064x},{giant}\n{2:064x},pro\n".encode()
    report = place.run(data)
    assert report is not None and (report.added, report.rejected) == (1, 1)
    report = place.run(f'token,plan\n{3:064x},"{giant}\n{4:064x},pro\n'.encode())  # a quote that never closes
    assert report is not None and report.rejected >= 1
    lines = f'{{"token": "{5:064x}", "plan": "{giant}"}}\n{{"token": "{6:064x}"}}\n'
    report = place.run(lines.encode())
    assert report is not None and (report.added, report.rejected) == (1, 1)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_file_without_line_ends_is_refused_before_it_fills_the_memory(place: Place, pack: Any) -> None:
    for beginning in (b"\0" * 1000, b"token,user", b'[{"token": "', b'token\n"'):
        endless = io.BytesIO(pack(beginning + b"x" * 70_000_000))
        with pytest.raises(InvalidInputError, match=r"line|array|NUL"):
            place.sender.devices.import_file(endless, app=BUNDLE)
        assert pack is not bytes or endless.tell() < 40_000_000
    assert place.devices() == 0 and place.leftovers() == 0


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1", "cp1252", "utf-32", "utf-8-sig"])
def test_a_file_in_another_encoding_is_refused_or_its_lines_are(place: Place, encoding: str) -> None:
    data = f"token,user,plan\n{7:064x},René,é\n".encode(encoding)
    report = place.run(data)
    if encoding == "utf-8-sig":
        assert report is not None and report.added == 1
    else:
        assert report is None or (report.added == 0 and report.rejected == 1)


def test_rejects_of_hostile_lines_are_written_whole_and_only_for_their_owner(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "devices.csv"
    source.write_bytes(b"token,user\nnonsense\xff,\x1b[31m\n" + f"{8:064x},ok\n".encode())
    report = place.sender.devices.import_file(source, app=BUNDLE)
    assert report.rejects is not None
    assert b"nonsense\xff" in report.rejects.read_bytes()
    assert report.rejects.stat().st_mode & 0o077 == 0
