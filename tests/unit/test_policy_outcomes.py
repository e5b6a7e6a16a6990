"""The outcome table: what each answer of APNs does, row by row, and that nothing falls through it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sender.model import Accepted, NotProcessed, Rejected, Unknown
from sender.policy.outcomes import (
    FALLBACKS,
    NO_ANSWER,
    NOT_PROCESSED,
    OWN_REASONS,
    RULES,
    SENT,
    DeliveryStep,
    Halt,
    TokenStep,
    explain,
    is_known,
    rule_for,
)

CONFIGURATION = [
    "InvalidProviderToken",
    "MissingProviderToken",
    "UnrelatedKeyIdInToken",
    "BadEnvironmentKeyIdInToken",
    "BadEnvironmentKeyInToken",
    "BadCertificate",
    "BadCertificateEnvironment",
    "Forbidden",
    "ExpiredProviderToken",
    "BadTopic",
    "MissingTopic",
    "TopicDisallowed",
]
WRONG_MESSAGE = [
    "PayloadTooLarge",
    "PayloadEmpty",
    "BadCollapseId",
    "BadExpirationDate",
    "BadPriority",
    "InvalidPushType",
    "BadMessageId",
    "DuplicateHeaders",
    "MissingDeviceToken",
    "BadPath",
    "MethodNotAllowed",
]
REASONS = [rule.reason for rule in RULES]


def answer_of(reason: str) -> Rejected:
    """A rejection with the reason, in the status that Apple gives it."""
    return Rejected(status=next(rule for rule in RULES if rule.reason == reason).statuses[0], reason=reason)


@pytest.mark.parametrize("reason", ["Unregistered", "ExpiredToken"])
def test_a_410_rejects_the_delivery_and_invalidates_the_token(reason: str) -> None:
    rule = rule_for(Rejected(status=410, reason=reason))
    assert (rule.delivery, rule.token, rule.halt) == (DeliveryStep.REJECT, TokenStep.INVALIDATE, Halt.NONE)


@pytest.mark.parametrize("reason", ["BadDeviceToken", "DeviceTokenNotForTopic"])
def test_a_token_that_may_be_in_the_wrong_place_is_quarantined_and_never_invalidated(reason: str) -> None:
    rule = rule_for(Rejected(status=400, reason=reason))
    assert (rule.delivery, rule.token, rule.halt) == (DeliveryStep.REJECT, TokenStep.QUARANTINE, Halt.NONE)


def test_too_many_requests_blocklists_the_device_and_delivers_later() -> None:
    rule = rule_for(Rejected(status=429, reason="TooManyRequests"))
    assert (rule.delivery, rule.token, rule.halt) == (DeliveryStep.DEFER, TokenStep.BLOCKLIST, Halt.NONE)


def test_too_many_provider_token_updates_hold_the_credential_and_charge_no_attempt() -> None:
    rule = rule_for(Rejected(status=429, reason="TooManyProviderTokenUpdates"))
    assert (rule.delivery, rule.token, rule.halt) == (DeliveryStep.RELEASE, TokenStep.NONE, Halt.HOLD_CREDENTIAL)


@pytest.mark.parametrize("reason", CONFIGURATION)
def test_a_configuration_error_pauses_the_app_and_touches_neither_token_nor_delivery(reason: str) -> None:
    rule = rule_for(answer_of(reason))
    assert (rule.delivery, rule.token, rule.halt) == (DeliveryStep.RELEASE, TokenStep.NONE, Halt.PAUSE_APP)


@pytest.mark.parametrize("reason", ["InvalidProviderToken", "UnrelatedKeyIdInToken", "ExpiredProviderToken"])
def test_errors_that_a_stale_connection_can_cause_get_one_fresh_connection_first(reason: str) -> None:
    assert rule_for(answer_of(reason)).fresh_connection


@pytest.mark.parametrize("reason", WRONG_MESSAGE)
def test_a_message_that_is_wrong_for_every_device_stops_the_campaign_and_touches_no_token(reason: str) -> None:
    rule = rule_for(answer_of(reason))
    assert (rule.delivery, rule.token, rule.halt) == (DeliveryStep.FAIL, TokenStep.NONE, Halt.STOP_CAMPAIGN)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(500, "InternalServerError"), (503, "ServiceUnavailable"), (503, "Shutdown"), (400, "IdleTimeout"), (502, "")],
)
def test_trouble_at_apns_is_tried_again(status: int, reason: str) -> None:
    rule = rule_for(Rejected(status=status, reason=reason))
    assert (rule.delivery, rule.token, rule.halt) == (DeliveryStep.RETRY, TokenStep.NONE, Halt.NONE)


def test_an_accepted_push_is_sent_and_ends_a_blocklisting() -> None:
    assert rule_for(Accepted()) is SENT
    assert (SENT.delivery, SENT.token) == (DeliveryStep.SENT, TokenStep.CLEAR)


def test_no_answer_is_neither_sent_nor_failed() -> None:
    assert rule_for(Unknown(cause="timeout")) is NO_ANSWER
    assert NO_ANSWER.delivery is DeliveryStep.UNKNOWN


def test_a_refused_stream_is_sent_again_without_an_attempt_charged() -> None:
    assert rule_for(NotProcessed(cause="REFUSED_STREAM")) is NOT_PROCESSED
    assert NOT_PROCESSED.delivery is DeliveryStep.RESEND


def test_a_410_without_a_body_counts_as_unregistered() -> None:
    assert rule_for(Rejected(status=410)).reason == "Unregistered"


def test_an_unknown_400_rejects_the_delivery_and_touches_no_token() -> None:
    rule = rule_for(Rejected(status=400, reason="SomethingNewIn2031"))
    assert (rule.delivery, rule.token, rule.halt) == (DeliveryStep.REJECT, TokenStep.NONE, Halt.NONE)


def test_an_unknown_403_pauses_the_app() -> None:
    rule = rule_for(Rejected(status=403, reason="SomethingNewIn2031"))
    assert (rule.delivery, rule.halt) == (DeliveryStep.RELEASE, Halt.PAUSE_APP)


def test_a_known_reason_in_a_status_that_apple_does_not_give_it_falls_back_on_the_status() -> None:
    assert rule_for(Rejected(status=500, reason="Unregistered")).token is TokenStep.NONE


def test_reasons_are_in_the_table_once() -> None:
    assert len(REASONS) == len(set(REASONS))


statuses = st.integers(min_value=100, max_value=999)
reasons = st.one_of(st.sampled_from(REASONS), st.text(max_size=40))


@given(statuses, reasons)
@example(599, "")
def test_every_status_and_reason_has_a_row_with_words_to_it(status: int, reason: str) -> None:
    rule = rule_for(Rejected(status=status, reason=reason))
    assert rule.meaning and rule.advice
    assert explain(rule.reason) == (rule.meaning, rule.advice)


@given(statuses.filter(lambda status: status >= 400), reasons)
def test_only_a_410_ever_invalidates_a_token(status: int, reason: str) -> None:
    rule = rule_for(Rejected(status=status, reason=reason))
    assert rule.token is not TokenStep.INVALIDATE or status == 410


@given(statuses, reasons)
def test_a_rejection_is_never_taken_for_a_success(status: int, reason: str) -> None:
    rule = rule_for(Rejected(status=status, reason=reason))
    assert rule.delivery is not DeliveryStep.SENT
    assert rule.token is not TokenStep.CLEAR


@given(statuses, reasons)
def test_whatever_halts_more_than_a_device_touches_no_token(status: int, reason: str) -> None:
    rule = rule_for(Rejected(status=status, reason=reason))
    assert rule.halt is Halt.NONE or rule.token is TokenStep.NONE


@given(reasons)
def test_a_reason_is_known_when_it_is_in_the_table(reason: str) -> None:
    assert is_known(Rejected(status=400, reason=reason)) == (reason in REASONS)


@given(st.text())
def test_every_reason_in_the_ledger_can_be_explained(reason: str) -> None:
    assert all(explain(reason))


def test_reasons_of_our_own_do_not_shadow_apples() -> None:
    assert not set(OWN_REASONS) & ({*REASONS} | {rule.reason for rule in FALLBACKS.values()})
