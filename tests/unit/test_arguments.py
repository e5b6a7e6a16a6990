"""Arguments of the public verbs that are of another type: said by name, before any server is asked."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from math import inf, nan
from typing import Any

import pytest

from sender import InvalidInputError, Segment, Sender
from sender.arguments import _PLAIN, check_arguments

NOUNS = ("activity", "apps", "campaigns", "changelog", "devices", "users")
#: What says itself all that is wrong with a campaign.
WHOLE = {"enqueue", "create_draft", "rehearse"}


@pytest.fixture(scope="module")
def sender() -> Sender:
    return Sender(database_url="postgresql://nobody@127.0.0.1:1/nothing")  # which would not answer


def plain_arguments() -> list[tuple[str, str, str]]:
    public = [
        (noun, name, verb)
        for noun in NOUNS
        for name, verb in inspect.getmembers(type(getattr(Sender(), noun)), inspect.isfunction)
        if not name.startswith("_") and name not in WHOLE
    ]
    return [
        (noun, name, each.name)
        for noun, name, verb in public
        for each in inspect.signature(verb).parameters.values()
        if _PLAIN.keys() >= {*str(each.annotation).split(" | ")}
    ]


@pytest.mark.parametrize(("noun", "verb", "name"), plain_arguments())
def test_every_plain_argument_of_a_public_verb_is_checked(sender: Sender, noun: str, verb: str, name: str) -> None:
    call = getattr(getattr(sender, noun), verb)
    needed = [each.name for each in inspect.signature(call).parameters.values() if each.default is each.empty]
    with pytest.raises(InvalidInputError, match=rf": (.*; )?{name} must be .*, not object"):
        call(**dict.fromkeys(needed) | {name: object()})


def test_the_check_reaches_all_nouns() -> None:
    assert len(plain_arguments()) > 80
    assert {noun for noun, _, _ in plain_arguments()} == set(NOUNS)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda sender: sender.campaigns.pause(5), "pause: key must be a text, not int"),
        (lambda sender: sender.campaigns.wait("x", timeout="5"), "wait: timeout must be a number or None, not str"),
        (lambda sender: sender.campaigns.change(5, rate=1), "change: key must be a text, not int"),
        (lambda sender: sender.campaigns.list(limit=True), "list: limit must be a whole number, not bool"),
        (lambda sender: sender.campaigns.list(state="gone"), "campaigns: state 'gone' is none of draft, "),
        (
            lambda sender: sender.apps.close_breaker("com.example.news", "sandbx"),
            "close_breaker: environment 'sandbx' is none of production, sandbox, both",
        ),
        (lambda sender: sender.campaigns.count("x", push_type="loud"), "count: push_type 'loud' is none of alert, "),
        (lambda sender: sender.campaigns.count("x", audience="all"), "audience must be a Segment or None, not str"),
        (lambda sender: sender.changelog.read(after=5), "read: after must be a text or None, not int"),
        (lambda sender: sender.devices.release(5), "release: tokens must be a sequence of texts, not int"),
        (lambda sender: sender.apps.add(5, key_file=6), "bundle_id must .*; key_file must be a text or a path or None"),
    ],
)
def test_the_argument_is_named_and_what_it_must_be(sender: Sender, ask: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        ask(sender)


@pytest.mark.parametrize(
    ("timeout", "words"), [(nan, ", not nan"), (inf, ", not inf"), (-inf, ", not -inf"), (10**400, "$")]
)
def test_a_number_that_is_none_is_refused(sender: Sender, timeout: float, words: str) -> None:
    """A campaign would be waited for for ever."""
    with pytest.raises(InvalidInputError, match=f"wait: timeout must be a finite number{words}"):
        sender.campaigns.wait("spring", timeout=timeout)


def test_what_fits_is_passed_on_as_it_is() -> None:
    @check_arguments(but=["whole"])
    class Noun:
        def verb(self, key: str, *, most: float | None = None, at: datetime | None = None, who: str | int = 1) -> Any:
            """What it does."""
            return key, most, at, who

        def part(self, audience: Segment) -> Any:
            return audience

        def whole(self, key: str) -> Any:
            return key

    now = datetime.now(UTC)
    assert Noun().verb("a", most=1, at=now) == ("a", 1, now, 1)
    assert Noun().verb("a", most=None, who="u") == ("a", None, None, "u")
    assert Noun().part(Segment.all()) == Segment.all()
    assert Noun().whole(5) == 5  # type: ignore[arg-type]
    assert Noun.verb.__doc__ == "What it does."
    with pytest.raises(TypeError, match="key"):
        Noun().verb()  # type: ignore[call-arg]
