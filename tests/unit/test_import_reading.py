import gzip
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sender.errors import InvalidInputError
from sender.imports import AttributeType, InactiveAs, Options, parse_map, parse_types
from sender.imports.reading import open_source
from sender.imports.rows import STAGED, RowReader

NOW = datetime(2026, 7, 26, tzinfo=UTC)


def rows(data: bytes, options: Options | None = None) -> list[dict[str, str] | str | None]:
    """What becomes of each record: the staged row, None when it is skipped, or why it is bad."""
    found: list[dict[str, str] | str | None] = []
    with open_source(io.BytesIO(data)) as source:
        reader = RowReader(source.name, source.header, options or Options(), NOW)
        for line, record in source.records:
            try:
                row = record if isinstance(record, str) else reader.read(line, record)
            except ValueError as error:
                row = str(error)
                found.append(row)
                continue
            if row is None or isinstance(record, str):
                found.append(row)
            else:
                cells = dict(zip(STAGED, row.split("\t"), strict=True))
                found.append({name: cell for name, cell in cells.items() if cell != "\\N"})
    return found


def test_columns_that_have_no_meaning_become_attributes() -> None:
    assert rows(b"token,user,plan,age\nABCD,u1,pro,7\n", Options(types={"age": AttributeType.INT})) == [
        {"line": "2", "token": "abcd", "external_user": "u1", "state": "active", "attributes": '{"plan":"pro","age":7}'}
    ]


def test_csv_and_jsonl_say_the_same() -> None:
    csv = b"token,user,locale,registered_at,active,plan\nabcd,7,fr_FR,2026-01-01T00:00:00Z,true,pro\n"
    record = {
        "token": "abcd",
        "user": 7,
        "locale": "fr_FR",
        "registered_at": "2026-01-01T00:00:00Z",
        "active": True,
        "plan": "pro",
    }
    (from_csv,), (from_jsonl,) = rows(csv), rows(json.dumps(record).encode())
    assert isinstance(from_csv, dict)
    assert isinstance(from_jsonl, dict)
    assert {**from_csv, "line": ""} == {**from_jsonl, "line": ""}


@pytest.mark.parametrize("encode", [gzip.compress, lambda data: b"\xef\xbb\xbf" + data, lambda data: b"\n\n" + data])
def test_gzip_a_byte_order_mark_and_blank_lines_make_no_difference(encode: object) -> None:
    (row,) = rows(encode(b"token\nabcd\n"))  # type: ignore[operator]
    assert isinstance(row, dict)
    assert row["token"] == "abcd"


@pytest.mark.parametrize("delimiter", [b",", b";", b"\t", b"|"])
def test_the_delimiter_is_told_from_the_header(delimiter: bytes) -> None:
    (row,) = rows(delimiter.join([b"token", b"user"]) + b"\r\n" + delimiter.join([b"abcd", b"u1"]) + b"\r\n")
    assert isinstance(row, dict)
    assert row["external_user"] == "u1"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b" \n ", "empty"),
        (b"PK\x03\x04....", "ZIP"),
        ("token\n".encode("utf-16"), "UTF-16"),
        (b'[{"token": "abcd"}]', "array"),
        # Without a time in it: two processes that collect the tests must call them the same.
        (gzip.compress(b"token\n" + b"abcd\n" * 1000, mtime=0)[:-12], "cut off"),
        (gzip.compress(b"token\nabcd\n", mtime=0)[:-8] + b"\0" * 8, "damaged"),
    ],
    ids=["empty", "blank", "zip", "utf-16", "json array", "cut off", "damaged"],
)
def test_a_file_that_is_wrong_as_a_whole_is_refused(data: bytes, word: str) -> None:
    with pytest.raises(InvalidInputError, match=word):
        rows(data)


def test_a_file_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="No such file"), open_source(tmp_path / "devices.csv"):
        pass
    with pytest.raises(InvalidInputError, match="directory"), open_source(tmp_path):
        pass


@pytest.mark.parametrize(
    ("header", "options", "word"),
    [
        (b"registration_id,user", Options(), "--map THEIRS=token"),
        (b"token,token", Options(), "two columns"),
        (b"token,a", Options(columns={"b": "user"}), "no such column"),
        (b"token,a", Options(types={"b": AttributeType.INT}), "no such column"),
        (b"token,", Options(), "no name"),
        (b"token,a,b", Options(columns={"a": "user", "b": "user"}), "two columns"),
    ],
)
def test_a_header_that_cannot_be_meant_is_refused(header: bytes, options: Options, word: str) -> None:
    with pytest.raises(InvalidInputError, match=word):
        rows(header + b"\nabcd,x\n", options)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b"abcd,u1", "3 fields|2 fields"),
        (b"abc,u1,", "odd"),
        (b"abcd,\xff,", "UTF-8"),
        (b"abcd,u1,Mars/Base", "IANA"),
        (b'abcd,"u1,', "not CSV"),
        (b"dQw4w9WgXcQ:APA91bHun4MxP5egoKMwt2KZFBaFUH,u1,", "FCM"),
    ],
)
def test_a_bad_line_says_why_and_the_others_stay_good(line: bytes, word: str) -> None:
    good, bad = rows(b"token,user,timezone\n0102,u2,\n" + line + b"\n")
    assert isinstance(good, dict)
    assert isinstance(bad, str)
    assert any(part in bad for part in word.split("|"))


def test_inactive_rows_are_quarantined_or_skipped() -> None:
    data = b"token,active\nabcd,f\n"
    (row,) = rows(data)
    assert isinstance(row, dict)
    assert row["state"] == "quarantined"
    assert rows(data, Options(inactive_as=InactiveAs.SKIP)) == [None]


def test_a_column_can_be_left_out() -> None:
    (row,) = rows(b"token,secret\nabcd,x\n", Options(columns={"secret": "-"}))
    assert isinstance(row, dict)
    assert row["attributes"] == "{}"


def test_maps_and_types_are_read_and_checked() -> None:
    assert parse_map(["registration_id=token,id=-", "a=user"]) == {"registration_id": "token", "id": "-", "a": "user"}
    assert parse_types(["age:int,vip:bool"]) == {"age": AttributeType.INT, "vip": AttributeType.BOOL}
    for wrong in ("token", "=x", "a=b,a=c"):
        with pytest.raises(InvalidInputError):
            parse_map([wrong])
    with pytest.raises(InvalidInputError, match="integer"):
        parse_types(["age:integer"])


@given(st.binary(max_size=300))
def test_any_bytes_give_rows_or_a_clear_error(data: bytes) -> None:
    try:
        rows(b"token,user,registered_at,attributes,x\n" + data)
    except InvalidInputError as error:
        assert str(error)


@given(
    st.dictionaries(
        st.sampled_from(["token", "user", "locale", "timezone", "registered_at", "active", "state", "attributes", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=5,
        ),
    )
)
def test_any_json_object_gives_a_row_or_a_reason(record: dict[str, object]) -> None:
    (row,) = rows(json.dumps(record).encode())
    assert isinstance(row, str) or row is None or row["token"]
