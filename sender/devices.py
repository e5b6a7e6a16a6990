"""Devices: what an application tells of them, and what it can ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from sender.arguments import check_arguments, one_of
from sender.audience import Segment
from sender.errors import ConflictError, InvalidInputError, InvalidSegmentError, NotFoundError
from sender.imports import ImportReport, Options, Progress, run_import
from sender.model import Actor, Authorization, Environment
from sender.policy.states import DeviceState
from sender.registry import forgetting, quarantine, restoring
from sender.registry.device_fields import check_attributes, check_locale, check_time, check_timezone, check_user
from sender.registry.quarantine import Quarantine
from sender.registry.restoring import RestoreReport
from sender.registry.tokens import normalise, normalise_prefix, prefix, redact
from sender.services import Services
from sender.store import apps, device_moves, inventory, references, registrations, users
from sender.store.apps import App
from sender.store.database import Transaction
from sender.store.device_moves import Which
from sender.store.forget import Forgotten
from sender.store.inventory import Device
from sender.store.registrations import KEEP, Keep, Registered, Registration

__all__ = ["KEEP", "Device", "Devices", "ImportReport", "Quarantine", "Registered", "RestoreReport"]


@check_arguments()
class Devices:
    """Tokens of apps, and what is known of them. `connection=` joins the caller's own transaction.

    Every verb raises `NotFoundError` for an unknown app, and `InvalidTokenError` for what is no token.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def register(
        self,
        bundle_id: str,
        token: str,
        *,
        user: str | int | Keep | None = KEEP,
        environment: Environment | str | None = None,
        locale: str | None = None,
        timezone: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        authorization: Authorization | str | None = None,
        replaces: str | None = None,
        registered_at: datetime | None = None,
        last_seen_at: datetime | None = None,
        connection: Any = None,
    ) -> Registered:
        """Add a device or refresh it: call it at every launch of the app, as Apple advises.

        What is left out stays as it is known. `user=None` means nobody's any more; `attributes` are merged, one set
        to None goes; `replaces` is the device's former token; `registered_at` defaults to now. A device not known
        before is of the app's only environment, or of production. An invalid or quarantined token is alive again; an
        opted-out device stays opted out.

        Raises `InvalidInputError` with all faults of the fields.
        """
        normal = normalise(token)
        former = None if replaces is None else normalise(replaces)
        fields = _checked(
            user=user,
            environment=environment,
            locale=locale,
            timezone=timezone,
            attributes=attributes,
            authorization=authorization,
            registered_at=registered_at,
            last_seen_at=last_seen_at,
        )
        owner = fields.pop("user", user)
        with self._services.database.within(connection) as transaction:
            app = _app(transaction, bundle_id)
            given = Registration(
                token=normal,
                replaces=former,
                user_id=users.ensure(transaction, owner) if isinstance(owner, str) else owner,
                default_environment=_default_environment(app),
                **fields,
            )
            return registrations.register(transaction, app.id, given)

    def unregister(self, bundle_id: str, token: str, *, connection: Any = None) -> bool:
        """The app said that the token is gone. False when it is invalid, opted out, or not known."""
        normal = normalise(token)
        with self._services.database.within(connection) as transaction:
            which = Which(app_id=_app(transaction, bundle_id).id, token=normal)
            return device_moves.unregister(transaction, which, reason="unregistered", actor=Actor.APPLICATION) > 0

    def opt_out(
        self, bundle_id: str, token: str | None = None, *, user: str | int | None = None, connection: Any = None
    ) -> int:
        """The user wants no pushes: on one device, or on all that they have now. Returns how many changed.

        Registering again does not opt in. Raises `NotFoundError` for an unknown token or user.
        """
        with self._services.database.within(connection) as transaction:
            which = _which(transaction, bundle_id, token, user)
            return device_moves.opt_out(transaction, which, reason="opted out", actor=Actor.APPLICATION)

    def opt_in(
        self, bundle_id: str, token: str | None = None, *, user: str | int | None = None, connection: Any = None
    ) -> int:
        """The user wants pushes again, on one device or on all. Returns how many changed. Raises `NotFoundError`."""
        with self._services.database.within(connection) as transaction:
            which = _which(transaction, bundle_id, token, user)
            return device_moves.opt_in(transaction, which, reason="opted in", actor=Actor.APPLICATION)

    def set_authorization(
        self, bundle_id: str, token: str, authorization: Authorization | str, *, connection: Any = None
    ) -> bool:
        """Note what the user allows, as UNUserNotificationCenter says. False when that was known.

        Raises `InvalidInputError`, and `NotFoundError` for an unknown token.
        """
        wanted = _checked(authorization=authorization)["authorization"]
        with self._services.database.within(connection) as transaction:
            which = _which(transaction, bundle_id, token, None)
            return device_moves.set_authorization(transaction, which, wanted) > 0

    def registration_failed(
        self, bundle_id: str, user: str | int | None, error: str, *, connection: Any = None
    ) -> None:
        """Note in the user's changelog that the app could not get a token, and what iOS said."""
        owner = None if user is None else _checked(user=user)["user"]
        text = redact(str(error)).replace("\0", "")[:500]
        with self._services.database.within(connection) as transaction:
            app = _app(transaction, bundle_id)
            user_id = None if owner is None else users.ensure(transaction, owner)
            device_moves.log_failed_registration(transaction, app.id, user_id, text)

    def find(self, beginning: str, *, app: str | None = None, most: int = 20) -> list[Device]:
        """Devices whose token begins so: at least 4 hex digits."""
        digits = normalise_prefix(beginning)
        with self._services.database.transaction() as transaction:
            app_id = None if app is None else _app(transaction, app).id
            return inventory.by_token(transaction, digits, app_id, most=most)

    def show(self, beginning: str, *, app: str | None = None) -> Device:
        """The one device whose token begins so. Raises `NotFoundError`; `ConflictError` when there are several."""
        found = self.find(beginning, app=app, most=2)
        if not found:
            raise NotFoundError("device", prefix(beginning), "no token begins so")
        whole = [device for device in found if device.token == normalise_prefix(beginning)]
        if len(whole) == 1:  # another one goes on after it
            return whole[0]
        if len(found) > 1:
            hint = "name the app" if found[0].token == found[1].token else "give more of the token"
            raise ConflictError(f"several devices have a token that begins with {prefix(beginning)!r}: {hint}")
        return found[0]

    def count(self, bundle_id: str, segment: Segment | None = None) -> dict[DeviceState, int]:
        """How many devices of an app, or of a segment of it, are in each state."""
        with self._services.database.transaction() as transaction:
            app = _app(transaction, bundle_id)
            _check_references(transaction, segment)
            return inventory.count_by_state(transaction, app.id, segment or Segment.all())

    @contextmanager
    def export(
        self, bundle_id: str, segment: Segment | None = None, *, state: DeviceState | str | None = None
    ) -> Iterator[Iterator[Device]]:
        """A stream of devices, tokens whole; memory stays flat. One transaction: what it shows is of one moment."""
        wanted = None if state is None else one_of(DeviceState, "state", state, of="device")
        with self._services.database.transaction() as transaction:
            app = _app(transaction, bundle_id)
            _check_references(transaction, segment)
            with inventory.stream(transaction, app.id, segment or Segment.all(), wanted) as devices:
                yield devices

    def import_file(
        self,
        source: str | Path | IO[bytes],
        *,
        app: str,
        options: Options | None = None,
        rejects: Path | None = None,
        progress: Progress | None = None,
    ) -> ImportReport:
        """Import devices from CSV or JSONL, gzipped or not: a path, "-" for standard input, or a binary file.

        Nothing lands when the file as a whole cannot be read; of a readable one the good lines land, and the bad ones
        are written to `rejects` (by default FILE.rejects.csv) with their line numbers and reasons.
        """
        with self._services.database.transaction() as transaction:
            found = _app(transaction, app)
        return run_import(
            self._services.database,
            source,
            app_id=found.id,
            default_environment=_default_environment(found),
            options=options or Options(),
            rejects=rejects,
            progress=progress,
        )

    def quarantined(
        self, *, app: str | None = None, reason: str | None = None, campaign: str | None = None, limit: int = 100
    ) -> Quarantine:
        """The devices in quarantine: counted by reason, and listed, the longest ago first, up to `limit`."""
        return quarantine.look(self._services, app=app, reason=reason, campaign=campaign, limit=limit)

    def release(
        self,
        tokens: Sequence[str] = (),
        *,
        campaign: str | None = None,
        app: str | None = None,
        dry_run: bool = False,
        actor: Actor = Actor.APPLICATION,
    ) -> int:
        """Let devices out of quarantine, by their tokens (the beginning is enough) or all that a campaign put there.

        Returns how many; with `dry_run` how many it would be. Raises `InvalidInputError` with every token that is not
        of exactly one quarantined device.
        """
        return quarantine.leave(
            self._services, tokens, campaign=campaign, app=app, confirmed=False, dry_run=dry_run, actor=actor
        )

    def confirm(
        self,
        tokens: Sequence[str] = (),
        *,
        campaign: str | None = None,
        app: str | None = None,
        dry_run: bool = False,
        actor: Actor = Actor.APPLICATION,
    ) -> int:
        """Confirm that quarantined tokens are invalid; otherwise as `release`."""
        return quarantine.leave(
            self._services, tokens, campaign=campaign, app=app, confirmed=True, dry_run=dry_run, actor=actor
        )

    def restore(
        self,
        *,
        campaign: str | None = None,
        reason: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        app: str | None = None,
        dry_run: bool = False,
        actor: Actor = Actor.APPLICATION,
        progress: restoring.Progress | None = None,
    ) -> RestoreReport:
        """Undo what a campaign, or a reason in a span of time, invalidated or quarantined, from the changelog.

        Devices go back to the state they had. Those that registered again or changed since are left alone, and counted
        with what happened to them. Safe to repeat. Raises `InvalidInputError`, `NotFoundError`.
        """
        wanted = restoring.Wanted(campaign=campaign, reason=reason, since=since, until=until, app=app)
        return restoring.restore(self._services, wanted, dry_run=dry_run, actor=actor, progress=progress)

    def forget_user(self, user: str | int, *, dry_run: bool = False, actor: Actor = Actor.APPLICATION) -> Forgotten:
        """Erase a person's data for good; the same as `Users.forget`."""
        return forgetting.forget(self._services, user, dry_run=dry_run, actor=actor)


def _app(transaction: Transaction, bundle_id: str) -> App:
    app = apps.find(transaction, bundle_id)
    if app is None:
        raise NotFoundError("app", bundle_id, "add it with `sender apps add`, or see `sender apps list`")
    return app


def _check_references(transaction: Transaction, segment: Segment | None) -> None:
    if segment is not None and (faults := references.faults(transaction, segment)):
        raise InvalidSegmentError("segment", faults)


def _default_environment(app: App) -> Environment:
    """Of a device that comes without one: the app's only environment, or production."""
    return app.environments[0] if len(app.environments) == 1 else Environment.PRODUCTION


def _which(transaction: Transaction, bundle_id: str, token: str | None, user: str | int | None) -> Which:
    """The devices that are meant. Raises `NotFoundError` when there are none."""
    if (token is None) == (user is None):
        raise InvalidInputError("device", ["give a token or a user, one of the two"])
    app_id = _app(transaction, bundle_id).id
    if token is not None:
        which, name = Which(app_id=app_id, token=normalise(token)), prefix(normalise(token))
    else:
        name = _checked(user=user)["user"]
        which = Which(app_id=app_id, user_id=users.find(transaction, name) or 0)
    if not device_moves.count(transaction, which):
        raise NotFoundError("device" if token is not None else "user", name, f"{bundle_id} has no device of it")
    return which


def _checked(**given: Any) -> dict[str, Any]:
    """The fields in the form in which they are kept. Raises `InvalidInputError` with all faults."""
    now = datetime.now(UTC)
    checks: dict[str, Callable[[Any], Any]] = {
        "user": check_user,
        "environment": lambda value: one_of(Environment, "environment", value, of="device"),
        "locale": check_locale,
        "timezone": check_timezone,
        "attributes": check_attributes,
        "authorization": lambda value: one_of(Authorization, "authorization", value, of="device"),
        "registered_at": lambda value: check_time(value, now),
        "last_seen_at": lambda value: check_time(value, now),
    }
    fields: dict[str, Any] = {}
    faults: list[str] = []
    for name, value in given.items():
        if value is None or isinstance(value, Keep):
            continue
        try:
            fields[name] = checks[name](value)
        except InvalidInputError as error:
            faults += error.faults
        except (ValueError, AttributeError, TypeError) as error:
            faults.append(f"{name} {error}")
    if faults:
        raise InvalidInputError("device", faults)
    if "attributes" in fields:
        merged = fields["attributes"]
        fields["attributes"] = {name: value for name, value in merged.items() if value is not None}
        fields["removed"] = tuple(name for name, value in merged.items() if value is None)
    return fields
