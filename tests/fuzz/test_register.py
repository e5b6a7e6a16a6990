"""What an application says of a device: one row that can be read back, or a clear error and no row."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sender.client import Sender
from sender.errors import InvalidInputError, SenderError
from sender.registry.tokens import LONGEST, normalise, normalise_prefix
from sender.store import apps
from sender.store.database import Database
from tests.fuzz.profile import AWKWARD, DIGITS, fuzz, json_values, numbers, raw_texts

BUNDLE = "com.example.fuzz"
some_tokens = st.one_of(
    st.text(DIGITS + "ABCDEF <>", min_size=8, max_size=80),
    st.text(DIGITS, min_size=64, max_size=64),
    st.integers(1_000, 1_100).map("a".__mul__),
    raw_texts,
    json_values,
)
moments = st.one_of(
    st.none(),
    st.datetimes(timezones=st.sampled_from([UTC, None])),
    st.sampled_from([datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)]),
    json_values,
)
options = st.fixed_dictionaries(
    {},
    optional={
        "user": st.one_of(raw_texts, json_values),
        "environment": st.one_of(st.sampled_from(["production", "sandbox"]), json_values),
        "locale": st.one_of(st.sampled_from(["fr-FR", "en_US@calendar=buddhist"]), json_values),
        "timezone": st.one_of(st.just("Europe/Paris"), json_values),
        "attributes": st.one_of(st.dictionaries(raw_texts, json_values, max_size=4), json_values),
        "authorization": st.one_of(st.just("authorized"), json_values),
        "replaces": st.one_of(st.none(), some_tokens),
        "registered_at": moments,
        "last_seen_at": moments,
    },
)


@pytest.fixture
def place(sender: Sender, database: Database) -> Sender:
    with database.transaction() as transaction:
        apps.add(transaction, BUNDLE)
    return sender


def devices(sender: Sender) -> int:
    with sender.devices.export(BUNDLE) as every:
        return sum(1 for _ in every)


@fuzz(80)
@given(some_tokens, options)
def test_a_registration_is_a_row_that_can_be_read_or_nothing(place: Sender, token: Any, given: dict[str, Any]) -> None:
    before = devices(place)
    try:
        place.devices.register(BUNDLE, token, **given)
    except SenderError as error:
        assert str(error).strip() and len(str(error)) < 5_000
        assert devices(place) == before
        if isinstance(token, str) and len(token) > 20:
            assert token not in str(error)
        return
    assert devices(place) in (before, before + 1)
    shown = place.devices.show(normalise(token), app=BUNDLE)
    if shown.user is not None:
        place.users.show(shown.user)


@fuzz(60)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(["user", "locale", "timezone"], raw_texts)), moments)
def test_mostly_good_registrations_land(place: Sender, given: dict[str, Any], seen: Any) -> None:
    before = devices(place)
    try:
        place.devices.register(BUNDLE, f"{before + 1:064x}", last_seen_at=seen, **given)
    except InvalidInputError as error:
        assert error.faults and devices(place) == before
        return
    assert devices(place) == before + 1


VERBS: dict[str, Callable[[Sender, Any], Any]] = {
    "unregister": lambda sender, value: sender.devices.unregister(BUNDLE, value),
    "opt_out": lambda sender, value: sender.devices.opt_out(BUNDLE, value),
    "opt_out user": lambda sender, value: sender.devices.opt_out(BUNDLE, user=value),
    "opt_in": lambda sender, value: sender.devices.opt_in(BUNDLE, value),
    "set_authorization": lambda sender, value: sender.devices.set_authorization(BUNDLE, "ab" * 32, value),
    "registration_failed": lambda sender, value: sender.devices.registration_failed(BUNDLE, value, value),
    "find": lambda sender, value: sender.devices.find(value),
    "show": lambda sender, value: sender.devices.show(value),
    "count": lambda sender, value: sender.devices.count(value),
    "user": lambda sender, value: sender.users.show(value),
    "app": lambda sender, value: sender.apps.show(value),
    "add app": lambda sender, value: sender.apps.add(value, team_id=value, key_id=value, key_file=value),
    "app rate": lambda sender, value: sender.apps.set_rate(BUNDLE, value),
    "campaign": lambda sender, value: sender.campaigns.get(value),
    "changelog": lambda sender, value: sender.changelog.read(value),
    "changelog of user": lambda sender, value: sender.changelog.read(user=value),
    "changelog of device": lambda sender, value: sender.changelog.read(device=value),
    "activity": lambda sender, value: sender.activity.read(campaign=value, reason=value, user=value),
}


def test_every_verb_takes_any_text_or_refuses_it_clearly(place: Sender) -> None:
    for verb, call in VERBS.items():
        for text in (*AWKWARD, "\ud800", "a\udcff", "x\0y"):
            try:
                call(place, text)
            except SenderError as error:
                assert str(error).strip(), verb
            except Exception as error:
                raise AssertionError(f"{verb} of {text[:40]!r}") from error
    assert list(place.changelog.read(limit=1000))


@fuzz(100)
@given(st.one_of(some_tokens, numbers))
def test_a_token_is_lower_case_hex_or_an_error_that_does_not_repeat_it(token: Any) -> None:
    for read in (normalise, normalise_prefix):
        try:
            normal = read(token)
        except InvalidInputError as error:
            assert not isinstance(token, str) or len(token) < 20 or token not in str(error)
        else:
            assert 0 < len(normal) <= LONGEST and set(normal) <= set(DIGITS)
            assert read(normal) == normal
