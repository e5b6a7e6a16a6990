"""The data directory: its lock, its secrets, its modes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sender.errors import ConfigurationError, ConflictError
from sender.stack import datadir
from sender.stack.datadir import DataDirectory


def test_a_second_stack_on_a_data_directory_is_refused_and_told_whose_it_is(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "data")
    data.create()
    with data.lock(), pytest.raises(ConflictError, match=f"process {os.getpid()}"), DataDirectory(data.path).lock():
        pass
    with DataDirectory(data.path).lock():
        assert (data.path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_secret_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "data")
    data.create()
    secret = data.secret("postgres")
    assert len(secret) >= 32
    assert DataDirectory(data.path).secret("postgres") == secret
    assert data.secret("valkey") != secret
    assert stat.S_IMODE((data.path / "secrets.json").stat().st_mode) == 0o600


def test_nothing_in_it_can_be_listed_or_committed_by_accident(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "data")
    data.create()
    assert not stat.S_IMODE(data.path.stat().st_mode) & 0o066
    assert stat.S_IMODE(data.logs.stat().st_mode) == 0o700
    assert (data.path / ".gitignore").read_text() == "*\n"


def test_a_path_that_is_a_file_is_refused_with_the_setting_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="SENDER_DATA_DIR"):
        DataDirectory(tmp_path / "file" / "data").create()


def test_a_damaged_file_of_ours_is_named(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "data")
    data.create()
    (data.path / "secrets.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"secrets\.json is damaged"):
        data.secret("postgres")


def test_a_long_log_is_put_aside_before_more_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datadir, "LOG_LIMIT", 3)
    data = DataDirectory(tmp_path / "data")
    data.create()
    data.log("beat").write_text("long")
    log = data.log("beat")
    assert not log.exists()
    assert (data.logs / "beat.log.1").read_text() == "long"
