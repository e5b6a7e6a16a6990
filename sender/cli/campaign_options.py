"""The options that say what a campaign is, shared by `campaigns create`, `campaigns send` and `push`, and what they
mean. Every fault of every option is told at once."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer

from sender.audience import Segment
from sender.audience.canary import Canary
from sender.audience.where import parse_all
from sender.errors import InvalidInputError
from sender.payload import AUTO
from sender.planning.plan import DEFAULT, InvalidCampaignError, Rate

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
_LARGEST_FILE = 32 * 1024 * 1024


def message_options(
    *,
    title: Annotated[str | None, typer.Option(help="The alert's title.")] = None,
    subtitle: Annotated[str | None, typer.Option(help="The alert's subtitle.")] = None,
    body: Annotated[str | None, typer.Option(help="The alert's text.")] = None,
    sound: Annotated[str | None, typer.Option(help="The sound's name, such as default.")] = None,
    badge: Annotated[int | None, typer.Option(help="The number on the app's icon; 0 clears it.")] = None,
    category: Annotated[str | None, typer.Option(help="The category of its actions.")] = None,
    thread_id: Annotated[str | None, typer.Option(help="Groups notifications.")] = None,
    interruption_level: Annotated[
        str | None, typer.Option(help="passive, active, time-sensitive or critical.", show_default=False)
    ] = None,
    mutable_content: Annotated[
        bool, typer.Option("--mutable-content", help="Goes through the app's notification service extension.")
    ] = False,
    content_available: Annotated[
        bool, typer.Option("--content-available", help="Wakes the app in the background.")
    ] = False,
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="K=V", help="A custom key beside aps; V as JSON or text.")
    ] = None,
    payload: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="A whole payload as JSON; the options above add to it.")
    ] = None,
    push_type: Annotated[str | None, typer.Option(help="apns-push-type; follows from the payload.")] = None,
    priority: Annotated[int | None, typer.Option(help="apns-priority: 10, 5 or 1.")] = None,
    collapse_id: Annotated[
        str | None, typer.Option(help="apns-collapse-id, or none; derived from the campaign's key.")
    ] = None,
) -> None:
    """What a push says. (A template: only its signature is used.)"""


def campaign_options(
    *,
    app: Annotated[str | None, typer.Option(metavar="BUNDLE_ID", help="The app.")] = None,
    key: Annotated[str | None, typer.Option(help="The campaign's key: the same key never sends twice.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="K=V", help="plan=pro, age>=18, plan in a,b, locale=fr-FR; all must hold."),
    ] = None,
    segment: Annotated[str | None, typer.Option(metavar="FILE|-", help="A segment as JSON.")] = None,
    sample: Annotated[str | None, typer.Option(metavar="1%", help="Only this share of the devices.")] = None,
    rate: Annotated[str | None, typer.Option(metavar="N|unlimited", help="Pushes a second.")] = None,
    over: Annotated[
        str | None, typer.Option(metavar="2h", help="Spread it over this time, in the place of a rate.")
    ] = None,
    finish_by: Annotated[
        str | None, typer.Option(metavar="TIME", help="When it should be done: warns when it cannot be.")
    ] = None,
    exclude_sent: Annotated[
        list[str] | None,
        typer.Option("--exclude-sent", metavar="KEY", help="Leave out whom this ended campaign was sent to."),
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(metavar="30d", help="From the start; 0: one attempt, never stored.")
    ] = None,
    at: Annotated[str | None, typer.Option(metavar="TIME", help="When to start: 2027-04-01T09:00:00+02:00.")] = None,
    grace: Annotated[str | None, typer.Option(metavar="1h", help="How late it may still start.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Devices per Celery task; 1: a task a device.")] = None,
    delivery: Annotated[str, typer.Option(help="at_least_once or at_most_once.")] = "at_least_once",
    canary: Annotated[
        str | None, typer.Option(metavar="1%|N", help="Send to a random sample first; go on when its results are good.")
    ] = None,
    hold: Annotated[
        bool, typer.Option("--hold", help="After the canary wait for `resume`, however good it was.")
    ] = False,
    canary_max: Annotated[
        list[str] | None,
        typer.Option("--canary-max", metavar="REASON=2%", help="Pause when more of the sample's answers have it."),
    ] = None,
) -> None:
    """To whom, when and how fast. (A template: only its signature is used.)"""


def with_options(*templates: Callable[..., None]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of the templates; it gets their values as its first argument, a dictionary."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        shared = [
            part for template in templates for part in inspect.signature(template, eval_str=True).parameters.values()
        ]
        names = [part.name for part in shared]

        def call(**values: Any) -> Any:
            return command({name: values.pop(name) for name in names}, **values)

        parts = [part.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in [*own, *shared]]
        call.__signature__ = inspect.Signature(parts)  # type: ignore[attr-defined]
        call.__annotations__ = {part.name: part.annotation for part in parts}
        call.__name__, call.__doc__ = command.__name__, command.__doc__
        return call

    return decorate


def read_message(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments payload, push_type, priority and collapse_id from the message options."""
    document = {} if options["payload"] is None else read_json(options["payload"], "--payload")
    if not isinstance(document, dict):
        raise InvalidInputError("--payload", ["must be a JSON object"])
    aps = document.get("aps", {})
    if isinstance(aps, dict):
        merged = _merge_alert(aps, {name: options[name] for name in ("title", "subtitle", "body")})
        flags = {
            name: 1 if options[name.replace("-", "_")] else None for name in ("mutable-content", "content-available")
        }
        texts = {name: options[name.replace("-", "_")] for name in _APS_OPTIONS}
        merged |= {name: value for name, value in {**texts, **flags}.items() if value is not None}
        document = {**document, "aps": merged} if merged or "aps" in document or not document else document
    document |= _read_data(options["data"] or [])
    collapse = options["collapse_id"]
    return {
        "payload": document,
        "push_type": options["push_type"],
        "priority": options["priority"],
        "collapse_id": AUTO if collapse is None else None if collapse == "none" else collapse,
    }


_APS_OPTIONS = ("sound", "badge", "category", "thread-id", "interruption-level")


def read_campaign(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Campaigns.enqueue` from the options, the app's bundle id as bundle_id. Needs --app."""
    if not options["app"]:
        raise InvalidInputError("campaign", ["--app is missing: say which app (`sender apps list`)"])
    key = make_key(options["app"]) if options["key"] is None else options["key"]
    faults: list[str] = []
    values = {
        "audience": _collect(faults, read_audience, options, key),
        "rate": _collect(faults, read_rate, options["rate"]),
        "over": _collect(faults, read_duration, options["over"], "--over"),
        "finish_by": _collect(faults, read_time, options["finish_by"], "--finish-by"),
        "expires_in": _collect(faults, read_duration, options["expires_in"], "--expires-in"),
        "grace": _collect(faults, read_duration, options["grace"], "--grace"),
        "send_at": _collect(faults, read_time, options["at"], "--at"),
        "canary": _collect(faults, read_canary, options),
        "message": _collect(faults, read_message, options),
    }
    if faults:
        raise InvalidCampaignError("campaign", faults)
    message = values.pop("message")
    rest = {
        "batch_size": options["batch_size"],
        "delivery": options["delivery"],
        "exclude_sent": tuple(options["exclude_sent"] or ()),
    }
    return {"bundle_id": options["app"], "key": key, **values, **message, **rest}


def make_key(bundle_id: str) -> str:
    """A key for a campaign that was given none: the app's last name, the time, and something random."""
    return f"{bundle_id.rsplit('.', 1)[-1]}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:4]}"


def read_audience(options: Mapping[str, Any], key: str) -> Segment:
    """The segment that --where, --segment and --sample say together.

    An empty one is a fault: a script whose variable is not set must not send to everybody.
    """
    parts: list[Segment] = []
    if options["segment"] is not None:
        parts.append(Segment.from_json(read_json(options["segment"], "--segment")))
    if options["where"]:
        parts.append(parse_all(options["where"]))
    if options["sample"] is not None:
        parts.append(Segment.percentage(_read_percent(options["sample"], "--sample"), seed=key))
    whole = parts[0] if parts else Segment.all()
    for part in parts[1:]:
        whole &= part
    return whole


def read_rate(text: str | None) -> Rate:
    """Pushes a second; unlimited; or the setting's."""
    if text is None:
        return DEFAULT
    if text.strip().lower() == "unlimited":
        return None
    try:
        return float(text.replace("_", "").removesuffix("/s"))
    except ValueError:
        raise InvalidInputError("--rate", [f"{text!r} is neither a number of pushes a second nor unlimited"]) from None


def read_duration(text: str | None, option: str) -> float | None:
    """Seconds from 30d, 12h, 45m, 90s or 90."""
    if text is None:
        return None
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None:
        raise InvalidInputError(option, [f"{text!r} is no duration: write 30d, 12h, 45m or 90s"])
    return float(found[1]) * _UNITS[found[2] or "s"]


def read_canary(options: Mapping[str, Any]) -> Canary | None:
    """The canary that --canary, --hold and --canary-max say together; None without --canary."""
    text = options["canary"]
    if text is None:
        if options["hold"] or options["canary_max"]:
            raise InvalidInputError("--canary", ["is missing: --hold and --canary-max say what becomes of its sample"])
        return None
    thresholds = {}
    for item in options["canary_max"] or []:
        reason, equals, share = item.partition("=")
        if not equals or not share.strip().endswith("%"):
            raise InvalidInputError("--canary-max", [f"{item!r}: write REASON=SHARE, such as BadDeviceToken=2%"])
        thresholds[reason.strip()] = _read_percent(share, "--canary-max") / 100
    size: dict[str, Any] = (
        {"share": _read_percent(text, "--canary") / 100} if text.strip().endswith("%") else {"count": _read_count(text)}
    )
    return Canary(**size, hold=options["hold"], thresholds=thresholds)


def read_time(text: str | None, option: str) -> datetime | None:
    """An aware time."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInputError(option, [f"{text!r} is no time: write 2027-04-01T09:00:00+02:00"]) from None
    if moment.tzinfo is None:
        raise InvalidInputError(option, [f"{text!r} has no time zone: add Z or an offset such as +02:00"])
    return moment


def read_json(source: str, option: str) -> Any:
    """The JSON in a file, or on standard input for `-`."""
    if not source:
        raise InvalidInputError(option, ["is empty: name a file, or - for standard input"])
    try:
        raw = sys.stdin.buffer.read(_LARGEST_FILE) if source == "-" else _read_file(Path(source))
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_once)
    except OSError as error:
        raise InvalidInputError(option, [f"cannot read {source}: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise InvalidInputError(option, [f"{source} is no UTF-8 text"]) from None
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(option, [f"{source} is no JSON: {error}"]) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are different ones: JSON takes the last of equal ones, and a condition would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r} is there twice in one object")
    return found


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST_FILE)


def _read_percent(text: str, option: str) -> float:
    try:
        return float(text.strip().removesuffix("%"))
    except ValueError:
        raise InvalidInputError(option, [f"{text!r} is no share: write 1% or 0.5%"]) from None


def _read_count(text: str) -> int:
    try:
        return int(text.strip().replace("_", "").replace(",", ""))
    except ValueError:
        raise InvalidInputError("--canary", [f"{text!r} is neither a share nor a count: write 1% or 500"]) from None


def _merge_alert(aps: Mapping[str, Any], texts: Mapping[str, str | None]) -> dict[str, Any]:
    given = {name: text for name, text in texts.items() if text is not None}
    if not given:
        return dict(aps)
    alert = aps.get("alert", {})
    before = alert if isinstance(alert, dict) else {"body": alert}
    return {**aps, "alert": {**before, **given}}


def _read_data(items: list[str]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise InvalidInputError("--data", [f"{item!r}: write NAME=VALUE"])
        if name == "aps":
            raise InvalidInputError("--data", ["aps is no custom key: use the other options or --payload"])
        try:
            data[name] = json.loads(value)
        except (ValueError, RecursionError):
            data[name] = value
    return data


def _collect(faults: list[str], read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` gives; what it refuses goes to the faults."""
    try:
        return read(*arguments)
    except InvalidInputError as error:
        faults += [f"{error.what}: {fault}" for fault in error.faults]
        return None
