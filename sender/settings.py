"""SENDER_* settings: read once, validated at start, passed in. Nothing else reads the environment for configuration.

(Passphrases of certificates are the one exception: a credential names an environment variable, and
`sender.apns.credentials` reads that variable when it loads the credential.)
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from sender.errors import ConfigurationError

#: Written by `sender up` into the data directory while it runs: {"pid", "database_url", "broker_url", ...}, mode 0600.
SERVERS_FILE = "servers.json"

#: Held by `sender up` in its data directory, for as long as it lives.
LOCK_FILE = "lock"


#: Settings for which an empty variable says something: kept for ever.
_FOR_EVER = frozenset({"retain_sent", "retain_errors", "retain_changelog"})


class _Environment(EnvSettingsSource):
    """The variables, without those that are empty: `SENDER_X=` in a file of variables says no more than no line."""

    def __call__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__call__().items() if value != "" or name in _FOR_EVER}


class Settings(BaseSettings):
    """Every setting, by its environment variable: `rate` is SENDER_RATE. URLs are secret: they may hold passwords."""

    model_config = SettingsConfigDict(env_prefix="SENDER_", frozen=True, extra="ignore", allow_inf_nan=False)

    # Servers
    database_url: SecretStr | None = None  # postgresql://user:password@host:5432/name
    database_schema: str = Field("sender", pattern=r"^[a-z_][a-z0-9_]{0,62}$")  # everything lives in it
    database_pool_size: int = Field(8, ge=1, le=100)  # connections per process; a worker: and one per thread
    broker_url: SecretStr | None = None  # redis://:password@host:6379/0
    broker_key_prefix: str = ""  # put before every Redis key, to share a database
    queue_prefix: str = Field("sender", pattern=r"^[A-Za-z0-9_.-]+$")  # queues: PREFIX.control, .campaign, .priority
    data_dir: Path = Path(".sender")  # state of the embedded servers, and where `sender up` says where they are

    # Pace, in pushes per second
    default_rate: float = Field(1000.0, ge=0.001, le=1e9)  # of a campaign that names none
    rate: float | None = Field(None, ge=0.001, le=1e9)  # of the whole installation; unlimited when not set
    batch_size: int = Field(500, ge=1, le=5000)  # devices per Celery task

    # Campaigns
    expires_in: float = Field(30 * 86_400, ge=0)  # seconds from a campaign's start
    start_grace: float = Field(3600, ge=0)  # seconds by which a scheduled start may be late and still happen
    retest_share: float = Field(0.01, ge=0, le=1)  # of a campaign's size, taken from quarantine at its end; 0: none
    quarantine_days: int = Field(90, ge=0)  # after which a quarantined token is held to be invalid; 0: never

    # Retention, in days; empty: kept for ever
    retain_sent: int | None = Field(30, ge=1)  # whole months of `sent` rows; the batches of campaigns that have ended
    retain_errors: int | None = Field(180, ge=1, validate_default=True)  # whole months of the ledger; at least as long
    retain_changelog: int | None = Field(None, ge=1)  # whole months of the push changelog

    # Guard: answers that point at the configuration and not at the devices; shares of those that tell of a token
    guard_outstanding: int = Field(500, ge=1)  # pushes of a starting campaign that wait for results, per environment
    guard_judged: int = Field(300, ge=1)  # results that end a start; fewer trip nothing but a tiny audience
    guard_window: int = Field(2000, ge=1)  # results that each worker looks back on afterwards
    guard_share: float = Field(0.2, gt=0, le=1)  # of BadDeviceToken and DeviceTokenNotForTopic, from which it trips
    guard_times: float = Field(5.0, ge=1)  # unless the app's usual share, so many times, is more than that
    guard_most_share: float = Field(0.6, gt=0, le=1)  # from which it trips whatever is usual
    guard_gone_share: float = Field(0.6, gt=0, le=1)  # of 410s, if it is guard_times the app's usual share as well
    guard_history: int = Field(300, ge=1)  # results of an app in an environment that make a share usual

    # APNs
    apns_production_url: str = "https://api.push.apple.com:443"  # port 2197 works too; or a simulator
    apns_sandbox_url: str = "https://api.sandbox.push.apple.com:443"  # for tokens of builds run from Xcode
    apns_ca_file: Path | None = None  # trust only this CA, for simulators and inspecting proxies
    apns_proxy_url: SecretStr | None = None  # http://user:password@host:3128 (HTTP CONNECT)
    apns_protocol: Literal["ngh2", "stock"] = "ngh2"  # stock: aioapns's own HTTP/2 protocol, for comparison
    apns_connections: int = Field(4, ge=1, le=100)  # at most, per credential and environment and process
    apns_timeout: float = Field(30.0, gt=0)  # seconds that one push may wait for its answer
    apns_connect_timeout: float = Field(10.0, gt=0)  # seconds for connect, proxy and TLS handshake together

    # Workers
    worker_threads: int = Field(4, ge=1, le=64)  # batches in flight in a campaign worker; four times as many small ones
    lease: float = Field(30.0, ge=3)  # seconds that a claim lives without a heartbeat
    stop_timeout: float = Field(20.0, gt=0)  # seconds that a stopping worker waits for answers
    backoff_scale: float = Field(1.0, gt=0, le=1)  # multiplies every back-off: rehearsals do not wait for hours

    # Flower
    flower_user: str = "sender"  # for its basic authentication
    flower_password: SecretStr | None = None  # `sender up` makes one up and prints it once when there is none
    flower_port: int = Field(5555, ge=0, le=65535)  # 0: any free one
    flower_address: str = "127.0.0.1"  # where it listens

    # Logs
    log_level: Literal["debug", "info", "warning", "error"] = "info"  # events below it are left out
    log_format: Literal["console", "json"] = "console"  # json: one object a line

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment."""
        return init_settings, _Environment(settings_cls)

    @field_validator("apns_production_url", "apns_sandbox_url")
    @classmethod
    def _https_url(cls, value: str) -> str:
        if not is_readable(value) or (parts := urlsplit(value)).scheme != "https" or not parts.hostname:
            raise ValueError("must be an https:// URL with a host, such as https://api.push.apple.com:443")
        return value

    @field_validator(
        "database_url",
        "broker_url",
        "rate",
        "apns_ca_file",
        "apns_proxy_url",
        "retain_sent",
        "retain_errors",
        "retain_changelog",
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("retain_errors")
    @classmethod
    def _errors_outlive_sent(cls, value: int | None, info: ValidationInfo) -> int | None:
        """A month is dropped as a whole: with it would go `sent` rows that are to be kept."""
        if value is not None and "retain_sent" in info.data:
            sent = info.data["retain_sent"]
            if sent is None or sent > value:
                raise ValueError("must not be shorter than SENDER_RETAIN_SENT: set both, or both empty")
        return value

    @field_validator("broker_url")
    @classmethod
    def _check_certificates(cls, value: SecretStr | None) -> SecretStr | None:
        """A rediss:// URL that does not say otherwise has the server's certificate checked: kombu would not do it."""
        url = value.get_secret_value() if value else ""
        if not url.startswith("rediss://") or "ssl_cert_reqs=" in url:
            return value
        return SecretStr(f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required")

    def require_database_url(self) -> str:
        """The database's URL, or a `ConfigurationError` that names both remedies."""
        return _required(self.database_url, "SENDER_DATABASE_URL", self.data_dir)

    def require_broker_url(self) -> str:
        """The broker's URL, or a `ConfigurationError` that names both remedies, or says how such a URL is written."""
        url = _required(self.broker_url, "SENDER_BROKER_URL", self.data_dir)
        if not all("://" in each and is_readable(each) for each in url.split(";")):
            raise ConfigurationError(
                "SENDER_BROKER_URL cannot be read; check that it looks like redis://:password@host:6379/0, with "
                "special characters in the password percent-encoded, as in p%40ss for p@ss"
            )
        return url

    def queue(self, role: str) -> str:
        """The name of the queue of a role: control, campaign or priority."""
        return f"{self.queue_prefix}.{role}"


def _required(value: SecretStr | None, name: str, data_dir: Path) -> str:
    if value is None:
        raise ConfigurationError(
            f"{name} is not set and no running `sender up` was found in {data_dir}: set {name}, "
            "or run `sender up` in this directory (or set SENDER_DATA_DIR to that of a running one)"
        )
    return value.get_secret_value()


def is_readable(url: str) -> bool:
    """Whether the parts of a URL can be told apart, and what redis knows its databases by is a number.

    (The errors of those who trip over it hold what they trip over, which may be of the password.)
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    database = parts.path.strip("/")
    return parts.scheme not in {"redis", "rediss"} or not database or database.isdecimal()


def load_settings(**overrides: Any) -> Settings:
    """Read the settings: arguments first, then the environment, then the servers of a running `sender up`.

    Raises `ConfigurationError`, with every fault in it.
    """
    settings = read_settings(**overrides)
    running = running_servers(settings.data_dir)
    found = {
        name: SecretStr(running[name])
        for name in ("database_url", "broker_url")
        if getattr(settings, name) is None and isinstance(running.get(name), str)
    }
    return settings.model_copy(update=found) if found else settings


def read_settings(**overrides: Any) -> Settings:
    """Read the settings from arguments and environment alone. Raises `ConfigurationError`, with every fault in it."""
    if unknown := sorted(overrides.keys() - Settings.model_fields.keys()):  # of another database, say
        raise ConfigurationError(f"settings: {', '.join(unknown)}: no such setting: docs/settings.md has all of them")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        faults = "; ".join(
            f"SENDER_{'_'.join(str(part) for part in fault['loc']).upper()}: "
            + fault["msg"].removeprefix("Value error, ")
            for fault in error.errors(include_input=False, include_context=False, include_url=False)
        )
        raise ConfigurationError(f"settings: {faults}") from None


def unknown_variables() -> list[str]:
    """SENDER_ variables of the environment that are no settings: most likely misspelt."""
    known = {f"SENDER_{name.upper()}" for name in Settings.model_fields} | {"SENDER_ROLE"}  # of a process of ours
    names = (name for name in os.environ if name.startswith("SENDER_") and not name.startswith("SENDER_TEST_"))
    return sorted(name for name in names if name not in known)


def running_servers(data_dir: Path) -> dict[str, Any]:
    """What a live `sender up` wrote into its data directory; empty when there is none.

    It lives if it holds the directory's lock: the system takes that from it however it ends, and no other process that
    has its number by now is taken for it.
    """
    if not is_locked(data_dir / LOCK_FILE):
        return {}
    try:
        written = json.loads((data_dir / SERVERS_FILE).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return written if isinstance(written, dict) and isinstance(written.get("pid"), int) else {}


def is_locked(file: Path) -> bool:
    """Whether another open file holds an exclusive lock on this one. (Where there are no such locks, nothing does.)"""
    try:
        import fcntl

        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
