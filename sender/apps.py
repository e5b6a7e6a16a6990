"""Apps and their credentials: what an application calls."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from sender.apns.credentials import CredentialReport, check_credential, default_key_id, report_credential
from sender.arguments import check_arguments
from sender.errors import ConflictError, CredentialError, InvalidInputError, NotFoundError
from sender.halting import wait_until_halted
from sender.model import CredentialKind, CredentialRef, Environment
from sender.policy.pace import FASTEST, SLOWEST, is_rate
from sender.services import Services
from sender.store import apps as store
from sender.store import breakers, halts
from sender.store.apps import App
from sender.store.breakers import Breaker
from sender.store.database import Transaction

__all__ = ["App", "Apps", "CredentialReport", "EnvironmentChoice"]

EnvironmentChoice = Environment | Literal["production", "sandbox", "both"]

_BUNDLE_ID = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@check_arguments()
class Apps:
    """An app is a bundle id with a credential for each environment. Verbs on one app raise `NotFoundError` when there
    is none."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def add(
        self,
        bundle_id: str,
        *,
        team_id: str | None = None,
        key_id: str | None = None,
        key_file: str | Path | None = None,
        environment: EnvironmentChoice = "both",
        certificate_file: str | Path | None = None,
        passphrase_env: str | None = None,
    ) -> App:
        """Add an app with its credential, which is read and checked now, and referred to by path ever after.

        `key_id` defaults from the name AuthKey_XXXXXXXXXX.p8; a certificate for one environment with "both" is kept
        for that one. Adding the same again changes nothing. Raises `InvalidInputError` for what is no bundle id,
        `CredentialError`; `ConflictError` when the app is there with another credential.
        """
        _check_bundle_id(bundle_id)
        given = _Given(
            team_id=team_id,
            key_id=key_id,
            key_file=key_file,
            certificate_file=certificate_file,
            passphrase_env=passphrase_env,
        )
        refs = _checked(bundle_id, environment, given)
        with self._services.database.transaction() as transaction:
            app_id = store.add(transaction, bundle_id)
            if app_id is not None:
                store.set_credentials(transaction, app_id, refs)
                return _found(transaction, bundle_id)
            known = _found(transaction, bundle_id)
            if set(refs) != set(known.credentials):
                raise ConflictError(
                    f"app {bundle_id} is there already with {'another' if known.credentials else 'no'} credential: "
                    f"use `sender apps set-credential {bundle_id} …` (sender.apps.set_credential)"
                )
            return known

    def set_credential(
        self,
        bundle_id: str,
        *,
        team_id: str | None = None,
        key_id: str | None = None,
        key_file: str | Path | None = None,
        environment: EnvironmentChoice = "both",
        certificate_file: str | Path | None = None,
        passphrase_env: str | None = None,
    ) -> App:
        """Replace the credential of one environment or of both; the other environment's stays. Checked as in `add`."""
        given = _Given(
            team_id=team_id,
            key_id=key_id,
            key_file=key_file,
            certificate_file=certificate_file,
            passphrase_env=passphrase_env,
        )
        refs = _checked(bundle_id, environment, given)
        with self._services.database.transaction() as transaction:
            store.set_credentials(transaction, _found(transaction, bundle_id).id, refs)
            return _found(transaction, bundle_id)

    def list(self) -> list[App]:
        """Every app, by bundle id."""
        with self._services.database.transaction() as transaction:
            return store.list_all(transaction)

    def show(self, bundle_id: str) -> App:
        """One app."""
        with self._services.database.transaction() as transaction:
            return _found(transaction, bundle_id)

    def inspect_credential(self, ref: CredentialRef) -> CredentialReport:
        """Read a credential's file now: what it serves and when it ends. Raises `CredentialError`."""
        return report_credential(ref, datetime.now(UTC))

    def breakers(self, bundle_id: str) -> dict[Environment, Breaker]:
        """How each of an app's credentials is doing: whether it sends, rests, or is slowed down, and why."""
        with self._services.database.transaction() as transaction:
            refs = _found(transaction, bundle_id).credentials
            known = breakers.read(transaction, [ref.identity for ref in refs])
        return {ref.environment: known.get(ref.identity, Breaker(credential=ref.identity)) for ref in refs}

    def close_breaker(self, bundle_id: str, environment: EnvironmentChoice = "both") -> tuple[str, ...]:
        """Send again at once with an app's credentials that rest, slowly at first; returns which these were.

        For somebody who knows that APNs is well: what opened the breaker opens it again, for longer. Other apps that
        share the credential go on too. Raises `InvalidInputError` for what is no environment.
        """
        if faults := _environment_faults(environment):
            raise InvalidInputError("close_breaker", faults)
        with self._services.database.transaction() as transaction:
            wanted = {
                ref.identity
                for ref in _found(transaction, bundle_id).credentials
                if environment in ("both", ref.environment)
            }
            closed = tuple(identity for identity in sorted(wanted) if breakers.close_one(transaction, identity))
            sharing = [
                app.id for app in store.list_all(transaction) if {ref.identity for ref in app.credentials} & set(closed)
            ]
            breakers.bring_forward(transaction, sharing)
        if closed:
            self._services.nudge()
        return closed

    def count_devices(self, bundle_id: str) -> int:
        """How many devices an app has, in whatever state."""
        with self._services.database.transaction() as transaction:
            return store.count_devices(transaction, _found(transaction, bundle_id).id)

    def remove(self, bundle_id: str) -> None:
        """Delete an app with its credentials, devices and finished campaigns.

        Raises `ConflictError` while it has campaigns that are not over.
        """
        with self._services.database.transaction() as transaction:
            app = _found(transaction, bundle_id)
            if keys := store.open_campaigns(transaction, app.id):
                raise ConflictError(
                    f"app {bundle_id} has campaigns that are not over ({', '.join(keys)}): cancel them, or wait"
                )
            store.remove(transaction, app.id)

    def set_rate(self, bundle_id: str, rate: float | None) -> None:
        """Limit an app's pushes a second over all its campaigns and all workers; None lifts the limit.

        Raises `InvalidInputError` for what is no rate.
        """
        if rate is not None and not is_rate(rate):
            fault = f"{str(rate)[:40]!r} is not a number of pushes a second from {SLOWEST:.6f} to {FASTEST:,.0f}"
            raise InvalidInputError("rate", [f"{fault}; None (unlimited) lifts the limit"])
        with self._services.database.transaction() as transaction:
            store.set_rate(transaction, _found(transaction, bundle_id).id, rate)

    def set_healing(self, bundle_id: str, on: bool) -> App:
        """Have refused tokens tried in the other environment, and moved there when they are accepted.

        Raises `ConflictError` for an app that has no credential for both environments.
        """
        with self._services.database.transaction() as transaction:
            app = _found(transaction, bundle_id)
            missing = [str(each) for each in Environment if each not in app.environments]
            if on and missing:
                raise ConflictError(
                    f"app {bundle_id} has no credential for {' and '.join(missing)}, so that nothing can be tried "
                    f"there: add one with `sender apps set-credential {bundle_id} --environment {missing[0]} …`"
                )
            store.set_healing(transaction, app.id, on)
            return _found(transaction, bundle_id)

    def pause(self, bundle_id: str, reason: str = "paused by a person") -> bool:
        """Stop all campaigns of an app where they are. False when it is paused already.

        Returns when the workers have noticed, or after a second; see `halted`.
        """
        with self._services.database.transaction() as transaction:
            app_id = _found(transaction, bundle_id).id
            paused = store.pause_app(transaction, app_id, reason)
        wait_until_halted(self._services.database, app_id=app_id)
        return paused

    def halted(self, bundle_id: str) -> bool:
        """Whether no worker issues anything of an app's campaigns: right after `pause`, whether it was heeded."""
        with self._services.database.transaction() as transaction:
            return not halts.issuing(transaction, app_id=_found(transaction, bundle_id).id)

    def resume(self, bundle_id: str) -> bool:
        """Let an app's campaigns go on where they stopped. False when it is not paused."""
        with self._services.database.transaction() as transaction:
            resumed = store.resume_app(transaction, _found(transaction, bundle_id).id)
        if resumed:
            self._services.nudge()
        return resumed


def _found(transaction: Transaction, bundle_id: str) -> App:
    app = store.find(transaction, bundle_id)
    if app is None:
        raise NotFoundError("app", bundle_id, "add it with `sender apps add`, or see `sender apps list`")
    return app


def _check_bundle_id(bundle_id: str) -> None:
    if len(bundle_id) > 155 or not _BUNDLE_ID.fullmatch(bundle_id):
        raise InvalidInputError(
            "bundle id", [f"{bundle_id[:80]!r} is not one: letters, digits, - and dots, such as com.example.news"]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """A credential as the caller described it."""

    team_id: str | None
    key_id: str | None
    key_file: str | Path | None
    certificate_file: str | Path | None
    passphrase_env: str | None

    def contradictions(self) -> list[str]:
        """What cannot be meant."""
        faults = []
        if (self.key_file is None) == (self.certificate_file is None):
            faults.append("give a key file (.p8) or a certificate file (.p12, .pem), one of the two")
        if self.certificate_file is not None and (self.team_id or self.key_id):
            faults.append("team id and key id belong to a key (.p8), not to a certificate")
        if self.key_file is not None and self.passphrase_env:
            faults.append("a passphrase belongs to a certificate (.p12, .pem), not to a key (.p8)")
        if self.passphrase_env and not _VARIABLE.fullmatch(self.passphrase_env):  # the passphrase itself? not shown
            faults.append("passphrase_env takes the name of an environment variable that holds the passphrase")
        return faults

    def reference(self, environment: Environment) -> CredentialRef:
        """Where the credential is kept, for one environment."""
        if self.key_file is None:
            return CredentialRef(
                kind=CredentialKind.CERTIFICATE,
                environment=environment,
                file=_absolute(self.certificate_file),
                passphrase_env=self.passphrase_env,
            )
        return CredentialRef(
            kind=CredentialKind.KEY,
            environment=environment,
            file=_absolute(self.key_file),
            team_id=self.team_id,
            key_id=self.key_id or default_key_id(self.key_file),
        )


def _absolute(file: str | Path | None) -> str:
    return str(Path(str(file)).expanduser().absolute())


def _environment_faults(environment: EnvironmentChoice) -> list[str]:
    if str(environment) in ("both", *Environment):
        return []
    return [f"environment {str(environment)!r} is none of production, sandbox, both"]


def _checked(bundle_id: str, environment: EnvironmentChoice, given: _Given) -> list[CredentialRef]:
    """A reference for each environment, after a look at what it points to; for a certificate and "both" only the
    environments that it serves."""
    faults = given.contradictions()
    faults += _environment_faults(environment)
    if faults:
        raise CredentialError("credential", faults)
    now = datetime.now(UTC)
    wanted = tuple(Environment) if environment == "both" else (Environment(environment),)
    if environment == "both" and given.key_file is None:
        wanted = report_credential(given.reference(Environment.PRODUCTION), now).environments
    refs = [given.reference(each) for each in wanted]
    for ref in refs:
        check_credential(ref, bundle_id, now)
    return refs
