"""Settings: read once, every fault named at once, and nothing secret in what is shown."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sender.apns.dial import endpoint_of
from sender.errors import ConfigurationError
from sender.model import Environment
from sender.settings import LOCK_FILE, SERVERS_FILE, Settings, load_settings, running_servers
from sender.stack.commands import settings_environment
from sender.stack.datadir import DataDirectory

PASSWORD = "hunter2-not-for-logs"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No SENDER_ variable, and a data directory in which nothing runs."""
    for name in [name for name in os.environ if name.startswith("SENDER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def write_servers(directory: Path, **content: object) -> None:
    directory.mkdir(exist_ok=True)
    (directory / SERVERS_FILE).write_text(json.dumps(content))


@contextmanager
def running(directory: Path) -> Iterator[None]:
    """A `sender up` that holds its data directory's lock, as another process would."""
    with (directory / LOCK_FILE).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDER_RATE", "0.2")
    monkeypatch.setenv("SENDER_BATCH_SIZE", "7")
    settings = load_settings()
    assert (settings.rate, settings.batch_size) == (0.2, 7)


def test_arguments_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDER_BATCH_SIZE", "7")
    assert load_settings(batch_size=9).batch_size == 9


def test_an_argument_that_is_no_setting_is_refused() -> None:
    """With its name misspelt, a database would be that of the environment."""
    with pytest.raises(ConfigurationError, match="databse_url"):
        load_settings(databse_url="postgresql:///mine")


def test_campaigns_run_at_a_thousand_a_second_and_expire_after_30_days_by_default() -> None:
    assert (load_settings().default_rate, load_settings().expires_in) == (1000, 30 * 24 * 3600)


@pytest.mark.parametrize(
    ("ask", "variable"),
    [(Settings.require_database_url, "SENDER_DATABASE_URL"), (Settings.require_broker_url, "SENDER_BROKER_URL")],
)
def test_a_missing_url_is_an_error_that_names_both_remedies(ask, variable: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ask(load_settings())
    assert variable in str(caught.value)
    assert "sender up" in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_fault_is_named_at_once_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDER_BATCH_SIZE", "0")
    monkeypatch.setenv("SENDER_RATE", "fast")
    monkeypatch.setenv("SENDER_LOG_LEVEL", "loud")
    with pytest.raises(ConfigurationError, match=r"SENDER_RATE.*SENDER_BATCH_SIZE.*SENDER_LOG_LEVEL"):
        load_settings()


@pytest.mark.parametrize(
    "url", ["api.push.apple.com", "http://api.push.apple.com", "https://", "https://:443", "https://h:99999"]
)
@pytest.mark.parametrize("name", ["apns_production_url", "apns_sandbox_url"])
def test_an_apns_url_without_https_or_a_host_is_refused(name: str, url: str) -> None:
    with pytest.raises(ConfigurationError, match=name.upper()):
        load_settings(**{name: url})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", 0),
        ("rate", -1),
        ("default_rate", 0),
        ("batch_size", 5001),
        ("database_schema", 'x"; DROP TABLE devices; --'),
        ("database_schema", "Sender"),
        ("queue_prefix", ""),
        ("queue_prefix", "a b"),
        ("expires_in", -1),
        ("backoff_scale", 1.5),
        ("apns_timeout", "inf"),
        ("lease", "inf"),
        ("stop_timeout", "nan"),
        ("expires_in", "inf"),
    ],
)
def test_a_value_out_of_its_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"SENDER_{name.upper()}"):
        load_settings(**{name: value})


@pytest.mark.parametrize("name", sorted(Settings.model_fields.keys() - {"retain_sent", "retain_errors"}))
def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    unset = getattr(load_settings(), name)
    monkeypatch.setenv(f"SENDER_{name.upper()}", "")
    assert getattr(load_settings(), name) == unset


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("database_url", f"postgresql://sender:{PASSWORD}@db/sender"),
        ("broker_url", f"redis://:{PASSWORD}@redis:6379/0"),
        ("apns_proxy_url", f"http://user:{PASSWORD}@proxy:3128"),
        ("flower_password", PASSWORD),
    ],
)
def test_a_password_is_never_shown(name: str, value: str) -> None:
    settings = load_settings(**{name: value})
    assert getattr(settings, name).get_secret_value() == value
    for shown in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert PASSWORD not in shown


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{PASSWORD}/x@h:6379/0",  # the slash ends the host, and what is before it would be a port
        f"redis://:{PASSWORD}@h:99999/0",
        f"redis://:{PASSWORD}@h:6379/zero",
        f"redis://:{PASSWORD}@[h:6379/0",
        f"sentinel://:{PASSWORD}@a:1;sentinel://:{PASSWORD}@b:x",
        PASSWORD,
    ],
)
def test_a_broker_url_that_cannot_be_read_is_refused_before_anybody_trips_over_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="SENDER_BROKER_URL cannot be read") as caught:
        load_settings(broker_url=url).require_broker_url()
    assert PASSWORD[:7] not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h/",
        "redis://h//",
        "redis://h:1/15?socket_timeout=3",
        "sentinel://a:1;sentinel://b:2",
        "memory://",
    ],
)
def test_a_broker_url_that_can_be_read_is_left_as_it_is(url: str) -> None:
    assert load_settings(broker_url=url).require_broker_url() == url


@pytest.mark.parametrize("url", [f"http://u:{PASSWORD}/x@proxy:3128", f"http://u:{PASSWORD}@proxy:99999", "socks5://h"])
def test_a_proxy_url_that_cannot_be_read_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="SENDER_APNS_PROXY_URL must look like") as caught:
        endpoint_of(load_settings(apns_proxy_url=url), Environment.PRODUCTION)
    assert PASSWORD[:7] not in str(caught.value)


def test_an_error_of_another_setting_does_not_show_a_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(database_url=f"postgresql://sender:{PASSWORD}@db/sender", batch_size=0)
    assert PASSWORD not in str(caught.value)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        load_settings().batch_size = 3  # type: ignore[misc]


def test_queues_carry_the_prefix() -> None:
    assert load_settings(queue_prefix="blue").queue("campaign") == "blue.campaign"


def test_the_servers_of_a_running_stack_are_found_in_its_data_directory(tmp_path: Path) -> None:
    write_servers(tmp_path / "d", pid=os.getpid(), database_url="postgresql:///a", broker_url="redis://b")
    with running(tmp_path / "d"):
        settings = load_settings(data_dir=tmp_path / "d")
    assert settings.require_database_url() == "postgresql:///a"
    assert settings.require_broker_url() == "redis://b"


def test_a_url_that_is_given_comes_before_that_of_a_running_stack(tmp_path: Path) -> None:
    write_servers(tmp_path / "d", pid=os.getpid(), database_url="postgresql:///a", broker_url="redis://b")
    with running(tmp_path / "d"):
        settings = load_settings(data_dir=tmp_path / "d", database_url="postgresql:///mine")
    assert settings.require_database_url() == "postgresql:///mine"
    assert settings.require_broker_url() == "redis://b"


def test_the_servers_of_a_stack_that_died_are_not_believed_though_its_number_lives(tmp_path: Path) -> None:
    write_servers(tmp_path / "d", pid=os.getpid(), database_url="postgresql:///a")
    assert running_servers(tmp_path / "d") == {}
    with running(tmp_path / "d"):
        assert running_servers(tmp_path / "d")["database_url"] == "postgresql:///a"
    assert (tmp_path / "d" / LOCK_FILE).exists()
    assert running_servers(tmp_path / "d") == {}


def test_looking_for_a_running_stack_does_not_keep_one_from_starting(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "d")
    data.create()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            running_servers(data.path)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(20):
            with data.lock():
                pass
    finally:
        done.set()
        for looker in lookers:
            looker.join()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": "x"}', '{"database_url": "postgresql:///a"}'])
def test_a_damaged_servers_file_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / SERVERS_FILE).write_text(text)
    with running(tmp_path):
        assert running_servers(tmp_path) == {}


@pytest.mark.parametrize(
    "given",
    [{"retain_sent": ""}, {"retain_sent": 365}, {"retain_errors": 7}, {"retain_sent": 0}, {"retain_changelog": 0}],
)
def test_errors_are_not_dropped_before_what_was_sent(given: dict[str, object]) -> None:
    """A month is dropped as a whole, so that its errors must be kept for at least as long."""
    with pytest.raises(ConfigurationError, match="SENDER_RETAIN_"):
        load_settings(**given)


def test_retention_can_be_longer_or_for_ever() -> None:
    assert load_settings(retain_sent=365, retain_errors=365).retain_errors == 365
    for_ever = load_settings(retain_sent="", retain_errors="", retain_changelog="")
    assert (for_ever.retain_sent, for_ever.retain_errors, for_ever.retain_changelog) == (None, None, None)


def test_what_is_kept_for_ever_is_so_in_the_processes_of_a_stack_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given = load_settings(retain_sent=365, retain_errors="", retain_changelog=400)
    for variable, value in settings_environment(given).items():
        monkeypatch.setenv(variable, value)
    assert load_settings() == given.model_copy(update={"data_dir": given.data_dir.absolute()})
