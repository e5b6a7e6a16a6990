"""`sender simulate-apns`: an APNs of your own, to rehearse campaigns on."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sender.errors import InvalidInputError, MissingExtraError
from sender.settings import load_settings
from sender.stack.signals import stop_with_starter

if TYPE_CHECKING:
    from sender.simulator import ProviderKey, Scenario, Simulator, SimulatorConfig

_SHARE = typer.Option(help="Share of tokens, 0 to 1.", min=0, max=1, rich_help_panel="Shares of tokens")
Share = Annotated[float | None, _SHARE]


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command("simulate-apns")(simulate_apns)


def simulate_apns(  # noqa: PLR0917  every parameter is an option
    port: Annotated[int, typer.Option(help="Port of the production environment; 0: any.", min=0, max=65535)] = 0,
    sandbox_port: Annotated[int, typer.Option(help="Port of the sandbox; 0: any.", min=0, max=65535)] = 0,
    control_port: Annotated[int, typer.Option(help="Port of the control endpoint; 0: any.", min=0, max=65535)] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    directory: Annotated[
        Path | None, typer.Option(help="Where the throw-away CA is kept. Default: DATA_DIR/simulator.")
    ] = None,
    scenario: Annotated[
        Path | None, typer.Option(help="Scenario file, TOML or JSON; the options below go before it.")
    ] = None,
    key: Annotated[list[Path] | None, typer.Option(help="Signing key (.p8) to check provider tokens with.")] = None,
    team_id: Annotated[str | None, typer.Option(help="Team id of --key.")] = None,
    key_id: Annotated[
        str | None, typer.Option(help="Key id of --key. Default: from its name, AuthKey_XXXXXXXXXX.p8.")
    ] = None,
    accept_any_key: Annotated[
        bool | None,
        typer.Option("--accept-any-key/--known-keys-only", help="Accept unknown keys. Default: unless --key is given."),
    ] = None,
    client_ca: Annotated[
        list[Path] | None, typer.Option(help="CA, or push certificate itself (PEM), to accept from clients.")
    ] = None,
    topic: Annotated[list[str] | None, typer.Option(help="Bundle id that may be pushed to. Default: all.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides which tokens behave how.")] = None,
    latency_ms: Annotated[float | None, typer.Option(help="Time that every answer takes.", min=0)] = None,
    jitter_ms: Annotated[float | None, typer.Option(help="Up to so much more.", min=0)] = None,
    tries: Annotated[
        int | None, typer.Option(help="Tries of a token that a passing fault lasts; 0: always.", min=0)
    ] = None,
    unregistered: Share = None,
    stale_unregistered: Share = None,
    expired_token: Share = None,
    bad: Share = None,
    wrong_topic: Share = None,
    other_environment: Share = None,
    throttled: Share = None,
    errors: Share = None,
    empty_error: Share = None,
    refused: Share = None,
    reset: Share = None,
    reset_after_headers: Share = None,
    silent: Share = None,
    answer_lost: Share = None,
    dropped_before: Share = None,
    dropped_after: Share = None,
    slow: Share = None,
    no_apns_id: Share = None,
    upper_case_id: Share = None,
    record: Annotated[str, typer.Option(help="What to remember of requests: full, counts or none.")] = "full",
    keep_payloads: Annotated[bool, typer.Option(help="Remember payloads too.")] = False,
    until_stdin_ends: Annotated[
        bool,
        typer.Option("--until-stdin-ends", hidden=True, help="Stop, too, when whoever holds standard input is gone."),
    ] = False,
) -> None:
    """Run an APNs on this machine that checks, answers and misbehaves like the real one, stable per token."""
    given = locals()
    simulator = _simulator(_config(given))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if until_stdin_ends:
        stop_with_starter()
    with simulator:
        typer.echo(f"url: {simulator.url}")
        typer.echo(f"sandbox url: {simulator.sandbox_url}")
        typer.echo(f"ca file: {simulator.ca_file.resolve()}")
        typer.echo(f"control: {simulator.control_url}")
        typer.echo("ready")
        stop.wait()


def _simulator(config: SimulatorConfig) -> Simulator:
    from sender.simulator import Simulator

    return Simulator(config)


def _config(given: dict[str, Any]) -> SimulatorConfig:
    try:
        from sender.simulator import SimulatorConfig
    except ModuleNotFoundError as error:
        if error.name != "ngh2":
            raise
        raise MissingExtraError("sender simulate-apns", "worker") from None
    if given["record"] not in {"full", "counts", "none"}:
        raise InvalidInputError("--record", [f"must be full, counts or none, not {given['record']!r}"])
    return SimulatorConfig(
        host=given["host"],
        port=given["port"],
        sandbox_port=given["sandbox_port"],
        control_port=given["control_port"],
        directory=given["directory"] or load_settings().data_dir / "simulator",
        keys=_keys(given),
        accept_any_key=given["accept_any_key"],
        client_cas=given["client_ca"] or (),
        topics=given["topic"] or (),
        scenario=_scenario(given),
        record=given["record"],
        keep_payloads=given["keep_payloads"],
    )


def _keys(given: dict[str, Any]) -> list[ProviderKey]:
    from sender.simulator import load_provider_key

    files: list[Path] = given["key"] or []
    if not files:
        return []
    if given["team_id"] is None:
        raise InvalidInputError("--key", ["needs --team-id: provider tokens name the team in iss"])
    if given["key_id"] is not None and len(files) > 1:
        raise InvalidInputError("--key-id", ["serves one --key; name several files AuthKey_XXXXXXXXXX.p8"])
    return [load_provider_key(path, team_id=given["team_id"], key_id=given["key_id"]) for path in files]


def _scenario(given: dict[str, Any]) -> Scenario:
    """The scenario file with the options put over it, checked as a whole."""
    from sender.simulator import Scenario, Shares, load_scenario, parse_scenario

    read = load_scenario(given["scenario"]) if given["scenario"] else Scenario()
    shares = {name: given[name] for name in Shares.model_fields if given[name] is not None}
    options = {name: given[name] for name in ("seed", "latency_ms", "jitter_ms", "tries") if given[name] is not None}
    value = read.model_dump()
    return parse_scenario(value | options | {"shares": value["shares"] | shares}, name="options")
