"""From a file to its records: gzip or not, CSV or JSONL, told by its first bytes and not by its name."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

from sender.errors import InvalidInputError

_HEAD = 4096
LONGEST_LINE = 32_000_000  # bytes
_DELIMITERS = ",;\t|"
_GZIP = b"\x1f\x8b"
#: First bytes of what people give by mistake.
_OTHERS = {
    b"PK\x03\x04": "it is a ZIP archive or a spreadsheet: unpack it, or save it as CSV",
    b"\xff\xfe": "it is UTF-16: save it as UTF-8",
    b"\xfe\xff": "it is UTF-16: save it as UTF-8",
    b"SQLite format 3": "it is an SQLite database: export the table as CSV",
    b"BZh": "it is bzip2: unpack it, or use gzip",
    b"\xfd7zXZ": "it is xz: unpack it, or use gzip",
    b"\x28\xb5\x2f\xfd": "it is zstd: unpack it, or use gzip",
    b"PAR1": "it is Parquet: write it as CSV or JSONL",
}

#: A line's number and either its fields (CSV: a list, JSONL: an object) or why it cannot be read.
Record = tuple[int, "list[str] | dict[str, Any] | str"]


class CountingReader(io.RawIOBase):
    """Counts the bytes that were read, so that progress can be told of a file and of a pipe alike."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.count = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As RawIOBase has it."""
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)


class LineGuard(io.RawIOBase):
    """Lets through what has line ends: a file without any (a device, a packed one) would be read into memory whole."""

    def __init__(self, source: IO[bytes], name: str) -> None:
        self._source = source
        self._name = name
        self._since = 0  # bytes since the last line end

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As RawIOBase has it. Raises `InvalidInputError` for a line that is too long."""
        data = self._source.read1(len(buffer))  # type: ignore[attr-defined]
        buffer[: len(data)] = data
        end = max(data.rfind(b"\n"), data.rfind(b"\r"))
        self._since = self._since + len(data) if end < 0 else len(data) - end - 1
        if self._since > LONGEST_LINE:
            raise InvalidInputError(
                self._name, [f"a line is longer than {LONGEST_LINE // 1_000_000} MB: write one record a line"]
            )
        return len(data)


@dataclass(slots=True)
class Source:
    """An opened file: `header` is None for JSONL. `records` can be gone through once."""

    name: str
    size: int | None  # bytes, None for a pipe
    header: list[str] | None
    records: Iterator[Record] = field(repr=False)
    raw: CountingReader = field(repr=False)


@contextmanager
def open_source(source: str | Path | IO[bytes]) -> Iterator[Source]:
    """Open a path, "-" for standard input, or a binary file.

    Raises `InvalidInputError` when it is not there or is no text of either kind; reading on raises the same for what
    is wrong with the file as a whole.
    """
    name = _name(source)
    opened: IO[bytes] | None = None
    try:
        if isinstance(source, str | Path):
            opened = sys.stdin.buffer if str(source) == "-" else Path(source).expanduser().open("rb")
        raw = CountingReader(cast("IO[bytes]", opened or source))
        text = _text(raw, name)
        with _faults_of_the_file(name):
            header, records = _records(text, name)
        yield Source(name, _size(opened), header, _guarded(records, name), raw)
    except OSError as error:
        if opened is None or error.filename:
            raise InvalidInputError(name, [f"it cannot be read: {error.strerror or error}"]) from None
        raise
    finally:
        if opened is not None and opened is not sys.stdin.buffer:
            opened.close()


def _name(source: str | Path | IO[bytes]) -> str:
    if isinstance(source, str | Path):
        return "standard input" if str(source) == "-" else str(source)
    return str(getattr(source, "name", "the file"))


def _size(opened: IO[bytes] | None) -> int | None:
    if opened is None or opened is sys.stdin.buffer:
        return None
    return Path(opened.name).stat().st_size or None


def _text(raw: CountingReader, name: str) -> io.TextIOWrapper:
    buffered: Any = io.BufferedReader(raw, 1 << 18)
    with _faults_of_the_file(name):
        if _peek(buffered).startswith(_GZIP):
            buffered = io.BufferedReader(cast("Any", gzip.GzipFile(fileobj=buffered)), 1 << 18)
        head = _peek(buffered)
    for magic, fault in _OTHERS.items():
        if head.startswith(magic):
            raise InvalidInputError(name, [fault])
    if not head.strip():
        raise InvalidInputError(name, ["it is empty"])
    guarded = io.BufferedReader(LineGuard(buffered, name), 1 << 18)
    # What is not UTF-8 is refused by the line, not by the file.
    return io.TextIOWrapper(guarded, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _peek(buffered: Any) -> bytes:
    head: bytes = buffered.peek(_HEAD)
    return head[:_HEAD]


def _records(text: io.TextIOWrapper, name: str) -> tuple[list[str] | None, Iterator[Record]]:
    lines = iter(text)
    number, first = 0, ""
    for number, first in enumerate(lines, 1):  # noqa: B007 - both are used below
        if first.strip():
            break
    if first.lstrip().startswith("{"):
        return None, _jsonl(first, number, lines)
    if first.lstrip().startswith("["):
        raise InvalidInputError(name, ["it is a JSON array: write one object a line (`jq -c '.[]' FILE`)"])
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(chain((first,), lines), delimiter=delimiter, strict=True)
    try:
        header = [column.strip() for column in next(reader)]
    except (csv.Error, StopIteration) as error:
        raise InvalidInputError(name, [f"its first line is no CSV header: {error}"]) from None
    return header, _csv(reader, number - 1)


def _csv(reader: Any, before: int) -> Iterator[Record]:
    """`before`: blank lines above the header, which the reader has not counted."""
    while True:
        number = reader.line_num + before + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, f"not CSV: {error}"
            continue
        if fields:
            yield number, fields


def _jsonl(first: str, number: int, lines: Iterator[str]) -> Iterator[Record]:
    decode = json.JSONDecoder(parse_constant=_refuse_constant).decode
    for number, line in enumerate(chain((first,), lines), number):  # noqa: B020, PLR1704
        if not line.strip():
            continue
        try:
            value = decode(line)
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON: {error}"
            continue
        yield number, value if isinstance(value, dict) else "not a JSON object"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _guarded(records: Iterator[Record], name: str) -> Iterator[Record]:
    with _faults_of_the_file(name):
        yield from records


@contextmanager
def _faults_of_the_file(name: str) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise InvalidInputError(name, ["the gzip file ends too early: it was cut off"]) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InvalidInputError(name, [f"the gzip file is damaged: {error}"]) from None
