"""Nothing public shows a whole token, a key or a password: not by repr, not by str, not in an error's text."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import Enum
from typing import Any
from uuid import uuid4

import pytest

import sender
from sender import errors
from sender.errors import SenderError
from sender.registry.tokens import normalise, normalise_prefix
from sender.settings import Settings

TOKEN = "0123456789abcdef" * 4
SECRET = "hunter2-hunter2"
#: Names of fields that hold what is not to be shown, when they are texts.
HOLDERS = {"token", "password", "passphrase", "private_key", "replaces", "secret"}
#: Whose `token` is its first 8 characters.
SHORTENED = {"Entry", "Line"}


def modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(sender.__path__, "sender."):
        if ".migrations" not in found.name:
            yield importlib.import_module(found.name)


def classes(base: type | None = None) -> list[type]:
    """Every class that is defined in the package, in order of its name."""
    found = {
        value
        for module in modules()
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__.startswith("sender.")
    }
    return sorted(
        (each for each in found if base is None or issubclass(each, base)), key=lambda each: each.__qualname__
    )


def filled(kind: type) -> Any:
    """An instance whose texts are all the token; made without its constructor's checks."""
    made = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(made, field.name, TOKEN)
    return made


def secret_fields(kind: type) -> set[str]:
    """The fields of a dataclass that hold a token, a key or a password."""
    if not dataclasses.is_dataclass(kind):
        return set()
    return {field.name for field in dataclasses.fields(kind) if field.name in HOLDERS and "str" in str(field.type)}


def records() -> list[type]:
    return [each for each in classes() if each.__name__ not in SHORTENED and secret_fields(each)]


@pytest.mark.parametrize("kind", records(), ids=lambda kind: kind.__qualname__)
def test_a_value_that_holds_a_token_does_not_show_it(kind: type) -> None:
    made = filled(kind)
    for field in dataclasses.fields(kind):
        if field.name not in HOLDERS:
            object.__setattr__(made, field.name, None)
    for text in (repr(made), str(made), f"{[made]}"):
        assert TOKEN not in text and TOKEN[:17] not in text


@pytest.mark.parametrize(
    "kind", [each for each in classes(tuple) if hasattr(each, "_fields")], ids=lambda kind: kind.__qualname__
)
def test_a_tuple_that_holds_a_token_does_not_show_it(kind: Any) -> None:
    if not HOLDERS & {*kind._fields}:
        return
    made = kind._make(TOKEN if name in HOLDERS else None for name in kind._fields)
    try:
        shown = repr(made)
    except AttributeError:  # a repr that asks its parts
        return
    assert TOKEN not in shown


def test_settings_show_no_url_and_no_password() -> None:
    given = {
        name: f"https://u:{SECRET}@h" if "url" in name else SECRET
        for name, field in Settings.model_fields.items()
        if "SecretStr" in str(field.annotation)
    }
    assert {"database_url", "broker_url", "flower_password", "apns_proxy_url"} <= set(given)
    settings = Settings(**given)  # type: ignore[arg-type]
    for text in (repr(settings), str(settings), f"{settings.model_dump()}", settings.model_dump_json()):
        assert SECRET not in text


def test_every_setting_that_may_hold_a_secret_is_one() -> None:
    plain = [
        name
        for name, field in Settings.model_fields.items()
        if any(word in name for word in ("password", "secret", "passphrase", "database_url", "broker_url", "proxy"))
        and "SecretStr" not in str(field.annotation)
    ]
    assert plain == []


def error_classes() -> list[type[SenderError]]:
    return [each for each in classes(SenderError) if issubclass(each, SenderError)]


def test_every_error_is_one_line_for_people_with_a_code() -> None:
    assert len(error_classes()) >= 12
    for kind in error_classes():
        assert inspect.getdoc(kind) and inspect.getdoc(kind) != inspect.getdoc(Exception), kind
        assert kind.exit_code != 0


@pytest.mark.parametrize("token", [TOKEN, TOKEN.upper(), f"<{TOKEN}>", f"{TOKEN}0", f"{TOKEN}xyz", f" {TOKEN}g "])
def test_no_token_error_repeats_the_token(token: str) -> None:
    for read in (normalise, normalise_prefix):
        try:
            read(f"{token}!")
        except SenderError as error:
            for text in (str(error), repr(error), f"{error.args}", f"{vars(error)}"):
                assert token[3:20].lower() not in text.lower()
        else:
            raise AssertionError("taken")


def test_the_public_names_have_reprs_without_addresses_of_secrets() -> None:
    for name in sender.__all__:
        value = getattr(sender, name)
        if inspect.isclass(value) and not issubclass(value, Enum | BaseException):
            assert TOKEN not in repr(value)
    with sender.Sender(database_url=f"postgresql://u:{SECRET}@127.0.0.1:1/x") as client:
        for text in (repr(client), str(client), repr(vars(client)), repr(client.devices), repr(client.campaigns)):
            assert SECRET not in text


def test_the_walk_would_find_a_token() -> None:
    @dataclasses.dataclass
    class Leaky:
        token: str

    assert TOKEN in repr(filled(Leaky))
    assert len(records()) >= 4 and typing.get_type_hints(errors.NotFoundError) is not None
    assert uuid4() and datetime.now(UTC)
