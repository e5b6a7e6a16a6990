"""Files that hold whole tokens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sender.private_files import open_private


@pytest.mark.parametrize("before", [None, 0o600, 0o644])
def test_a_file_is_its_owners_alone_also_when_it_was_there_before(tmp_path: Path, before: int | None) -> None:
    path = tmp_path / "tokens.csv"
    if before is not None:
        path.write_text("what was there, which is longer")
        path.chmod(before)
    with open_private(path) as file:
        file.write("abcd\n")
    assert path.read_text() == "abcd\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_made_private_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, os.strerror(1))

    path = tmp_path / "tokens.csv"
    path.write_text("somebody else's")
    path.chmod(0o666)
    monkeypatch.setattr(os, "fchmod", refuse)
    with pytest.raises(PermissionError):
        open_private(path)
    assert path.read_text() == "somebody else's"


def test_what_is_no_file_keeps_its_mode(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o644)
    mode = pipe.stat().st_mode
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with open_private(pipe) as file:
        file.write("abcd\n")
    assert os.read(reader, 100) == b"abcd\n"
    os.close(reader)
    assert pipe.stat().st_mode == mode
