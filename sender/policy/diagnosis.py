"""What is most likely wrong when the guard trips, in words, with the figures. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sender.model import CredentialKind, Environment
from sender.policy.guard import Counts, Sign, Trip

#: The share of refused tokens that must have come out of a file for the file to be the likely cause.
MOSTLY = 0.5


class Cause(StrEnum):
    """What is most likely wrong."""

    WRONG_ENVIRONMENT = "wrong environment for this credential"
    IMPORTED_ENVIRONMENT = "tokens imported with the wrong environment"
    REGISTERED_ENVIRONMENT = "tokens registered with the wrong environment"
    OTHER_CREDENTIAL = "credential of another app or team"
    WRONG_BUNDLE_ID = "wrong bundle id"
    OTHER_TOKENS = "tokens of another app"
    OLD_TOKENS = "tokens of apps that were removed long ago"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known around a trip."""

    campaign: str
    bundle_id: str
    environment: Environment
    credential: CredentialKind | None  # of this environment
    both: bool  # whether the app has a credential for each environment
    healing: bool
    worked: bool  # whether pushes of this app were accepted in this environment before
    replaced: bool  # whether the credential was set anew after they were
    other: Counts  # the campaign's answers in the other environment
    other_worked: bool
    imported: float  # the share of the refused tokens that came out of a file


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The likely cause, and the whole text: figures, cause, what to do."""

    cause: Cause
    text: str


def diagnose(trip: Trip, evidence: Evidence) -> Diagnosis:
    """Name the likely cause of a trip."""
    cause, why, remedy = _likely(trip, evidence)
    text = f"{_figures(trip, evidence)}. Likely cause: {cause}: {why}. Nothing was invalidated. {remedy}"
    return Diagnosis(cause=cause, text=text)


def _figures(trip: Trip, evidence: Evidence) -> str:
    share = trip.count / trip.window.judged
    usual = "no history yet" if trip.usual is None else f"usual for this app: {trip.usual:.1%}"
    return (
        f"The guard paused this campaign: {trip.count:,.0f} of {trip.window.judged:,.0f} answers in "
        f"{evidence.environment} were {trip.sign} ({share:.0%}; {usual})"
    )


def _likely(trip: Trip, evidence: Evidence) -> tuple[Cause, str, str]:
    match trip.sign:
        case Sign.BAD_TOKEN:
            return _wrong_environment(evidence)
        case Sign.WRONG_TOPIC:
            return _wrong_topic(evidence)
        case Sign.GONE:
            return (
                Cause.OLD_TOKENS,
                "far more tokens are gone than is usual, as in a table that was not sent to for a long time",
                f"If that is so, go on with {_resume(evidence)}: 410s do not stop it again.",
            )


def _wrong_environment(evidence: Evidence) -> tuple[Cause, str, str]:
    here, there = evidence.environment, _other(evidence.environment)
    if evidence.imported >= MOSTLY:
        why = f"{evidence.imported:.0%} of the refused tokens came out of a file, marked as {here}"
        if evidence.worked:
            why += f", while the app's own tokens are accepted in {here}"
        return Cause.IMPORTED_ENVIRONMENT, why, _mend_tokens(evidence)
    if evidence.worked and not evidence.replaced:
        why = (
            f"pushes in {here} were accepted before with this credential, so that it is right; builds run from Xcode "
            "have sandbox tokens, TestFlight and the App Store production tokens"
        )
        return Cause.REGISTERED_ENVIRONMENT, why, _mend_tokens(evidence)
    if evidence.replaced:
        why = f"pushes in {here} were accepted until the credential was replaced"
    elif evidence.other.accepted or evidence.other_worked:
        why = f"nothing was ever accepted in {here}, but pushes of this app are in {there}"
    else:
        why = f"nothing of this app was ever accepted in {here}; these look like tokens of {there}"
    check = f"Check with `sender apps show {evidence.bundle_id}` that the credential of {here} is for {here}, and "
    return Cause.WRONG_ENVIRONMENT, why, check + _lower(_mend_tokens(evidence))


def _wrong_topic(evidence: Evidence) -> tuple[Cause, str, str]:
    check = (
        f"Compare bundle id and credential (`sender apps show {evidence.bundle_id}`) with the build that the tokens "
        f"come from; then {_resume(evidence)}. The refused tokens are quarantined: `sender devices restore "
        f"--campaign {evidence.campaign}` puts them back."
    )
    if evidence.replaced or (not evidence.worked and evidence.credential is CredentialKind.CERTIFICATE):
        when = "pushes were accepted until the credential was replaced" if evidence.replaced else "nothing ever was"
        why = f"{when}; these tokens were issued to another app than the {evidence.credential} serves"
        return Cause.OTHER_CREDENTIAL, why, check
    if evidence.worked:
        came = "came out of a file" if evidence.imported >= MOSTLY else "were registered by another app"
        why = f"pushes to {evidence.bundle_id} were accepted before, so that these tokens most likely {came}"
        return Cause.OTHER_TOKENS, why + " that is not this one", check
    why = (
        f"nothing was ever accepted for {evidence.bundle_id} in {evidence.environment}; the tokens were issued to "
        "another bundle id, or the key belongs to another team"
    )
    return Cause.WRONG_BUNDLE_ID, why, check


def _mend_tokens(evidence: Evidence) -> str:
    there = _other(evidence.environment)
    mend = f"Import these tokens again as tokens of {there} (`--environment {there}` where the file does not say)"
    if evidence.both and not evidence.healing:
        mend += f", or have them tried there and moved by `sender apps heal {evidence.bundle_id} on`"
    return (
        f"{mend}; then {_resume(evidence)}. The refused tokens are quarantined: `sender devices restore --campaign "
        f"{evidence.campaign}` puts them back."
    )


def _resume(evidence: Evidence) -> str:
    return f"`sender campaigns resume {evidence.campaign}` (it starts slowly again)"


def _other(environment: Environment) -> Environment:
    return Environment.SANDBOX if environment is Environment.PRODUCTION else Environment.PRODUCTION


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
