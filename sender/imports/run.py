"""An import from its file to its report: read, stage, merge."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from sender.errors import InvalidInputError
from sender.imports.options import BadLine, ImportReport, Options, Progress, Stage
from sender.imports.reading import Source, open_source
from sender.imports.rows import STAGED, RowReader
from sender.model import Environment
from sender.private_files import open_private
from sender.store.database import Database
from sender.store.imports import SLICE, Merged, Staging, analyze

_BLOCK = 10_000  # rows sent to PostgreSQL at once
_SHOWN = 10  # bad lines in the report
_LARGE = 10_000  # changed rows from which on the planner is told


def run_import(
    database: Database,
    source: str | Path | IO[bytes],
    *,
    app_id: int,
    default_environment: Environment,
    options: Options,
    rejects: Path | None = None,
    progress: Progress | None = None,
) -> ImportReport:
    """Import a file into an app's devices. Raises `InvalidInputError`, and nothing lands, when it cannot be read."""
    staging = Staging(database, app_id=app_id, default_environment=default_environment)
    with open_source(source) as opened, _Rejects(_rejects_path(source, rejects), opened) as bad:
        reader = RowReader(opened.name, opened.header, options, datetime.now(UTC))
        staging.create()
        try:
            staged, tokens, skipped = _stage(staging, opened, reader, bad, progress or _silent)
            merged = _merge(staging, tokens, progress or _silent)
        finally:
            staging.drop()
        if merged.added + merged.updated >= _LARGE:
            analyze(database)
        return ImportReport(
            lines=staged + skipped + bad.count,
            added=merged.added,
            updated=merged.updated,
            unchanged=merged.tokens - merged.added - merged.updated - merged.outdated,
            outdated=merged.outdated,
            duplicates=staged - merged.tokens,
            skipped=skipped,
            rejected=bad.count,
            rejects=bad.path if bad.count else None,
            first_bad_lines=tuple(bad.first),
        )


def _stage(
    staging: Staging, source: Source, reader: RowReader, bad: _Rejects, progress: Progress
) -> tuple[int, int, int]:
    """Read every record into the staging table: (rows staged, different tokens in them, rows skipped)."""
    rows: list[str] = []
    staged = skipped = 0
    with _writer(staging) as write:
        for line, record in source.records:
            if isinstance(record, str):
                bad.add(line, record, None)
                continue
            try:
                row = reader.read(line, record)
            except ValueError as error:
                bad.add(line, str(error), record)
                continue
            if row is None:
                skipped += 1
                continue
            rows.append(row)
            if len(rows) == _BLOCK:
                write(rows)
                staged += _BLOCK
                rows = []
                progress(Stage.READING, source.raw.count, source.size)
        write(rows)
    progress(Stage.READING, source.raw.count, source.size)
    bad.flush()  # before anything lands
    return staged + len(rows), staging.finish(), skipped


@contextmanager
def _writer(staging: Staging) -> Iterator[Any]:
    """Copies blocks in a thread of its own, one ahead at most, so that reading and PostgreSQL work side by side."""
    with ThreadPoolExecutor(1, "import") as pool:
        pending: list[Future[None]] = []

        def write(rows: list[str]) -> None:
            if len(pending) > 1:
                pending.pop(0).result()
            if rows:
                pending.append(pool.submit(staging.copy, STAGED, ("\n".join(rows) + "\n").encode()))

        yield write
        for future in pending:
            future.result()


def _merge(staging: Staging, rows: int, progress: Progress) -> Merged:
    """Merge slice after slice, two at a time: they share no token, so they do not meet."""
    merged = Merged()
    with ThreadPoolExecutor(2, "import") as pool:
        slices = [pool.submit(staging.merge, first, first + SLICE - 1) for first in range(1, rows + 1, SLICE)]
        try:
            for each in slices:
                merged += each.result()
                progress(Stage.MERGING, merged.tokens, rows)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return merged


def _silent(_stage: Stage, _done: int, _whole: int | None) -> None:
    """No progress is wanted."""


def _rejects_path(source: str | Path | IO[bytes], given: Path | None) -> Path | None:
    """Where bad lines go: what was asked for, else beside the file; nowhere for a file object without a name."""
    if given is not None:
        if isinstance(source, str | Path) and str(source) != "-" and _is_same(given, Path(source)):
            raise InvalidInputError("--rejects", ["this is the file that is imported"])
        return given
    if not isinstance(source, str | Path):
        return None
    path = Path(source)
    return Path("stdin.rejects.csv") if str(source) == "-" else path.with_name(f"{path.name}.rejects.csv")


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, by whatever way."""
    try:
        return one.samefile(other)
    except OSError:  # there is no such file yet
        return False


class _Rejects:
    """The file of bad lines, made when the first one comes; only its owner may read it: it holds whole tokens."""

    def __init__(self, path: Path | None, source: Source) -> None:
        self.path = path
        self.count = 0
        self.first: list[BadLine] = []
        self._source = source
        self._file: IO[str] | None = None
        self._writer: Any = None

    def __enter__(self) -> _Rejects:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk was told of, and what is in memory does not fit at the end either
                self._file.close()

    def add(self, line: int, reason: str, record: Any) -> None:
        """One more bad line. `record` is None when the line was no record at all."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(BadLine(line=line, reason=reason))
        if self.path is None:
            return
        if self._file is None:
            self._open(self.path)
        shown = [] if record is None else record if isinstance(record, list) else [json.dumps(record)]
        with self._writing(self.path):
            self._writer.writerow([line, reason, *shown])

    def flush(self) -> None:
        """Write what is still in memory. Raises `InvalidInputError` when there is no room for it."""
        if self._file is not None and self.path is not None:
            with self._writing(self.path):
                self._file.flush()

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InvalidInputError(
                str(path), [f"the bad lines cannot be written there ({error.strerror}): choose with --rejects"]
            ) from None

    def _open(self, path: Path) -> None:
        with self._writing(path):
            self._file = open_private(path, errors="surrogateescape")
        self._writer = csv.writer(self._file)
        self._writer.writerow(["line", "reason", *(self._source.header or ["record"])])
