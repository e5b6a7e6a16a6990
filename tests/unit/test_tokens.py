import pytest
from hypothesis import given
from hypothesis import strategies as st

from sender.errors import InvalidTokenError
from sender.registry.tokens import is_fcm, normalise, normalise_prefix, prefix, redact

FCM = "dQw4w9WgXcQ:APA91bHun4MxP5egoKMwt2KZFBaFUH-1RYqx-abcdefghijklmnopqrstuvwxyz0123456789"


@given(st.binary(min_size=1, max_size=512))
def test_every_way_to_write_the_same_bytes_gives_one_token(data: bytes) -> None:
    token = data.hex()
    groups = " ".join(token[at : at + 8] for at in range(0, len(token), 8))
    assert normalise(token) == normalise(token.upper()) == normalise(f"<{groups}>") == normalise(f" {token}\n") == token


@given(st.text(max_size=200))
def test_any_text_is_a_token_or_a_clear_error_that_hides_most_of_it(text: str) -> None:
    try:
        token = normalise(text)
    except InvalidTokenError as error:
        assert len(text.strip()) <= 8 or text.strip()[:9] not in str(error)
    else:
        assert bytes.fromhex(token).hex() == token


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("<>", "empty"),
        ("abc", "odd number"),
        (FCM, "FCM"),
        ("APA91b" + "x" * 140, "FCM"),
        ("ExponentPushToken[xxxxxxxxxxxxxxxxxxxxxx]", "Expo"),
        ("https://fcm.googleapis.com/wp/abc", "URL"),
        ("123e4567-e89b-12d3-a456-426614174000", "UUID"),
        ("q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=", "base64"),
        ("zz", "hexadecimal"),
        ("ab" * 513, "at most 1024"),
        ("１２３４", "hexadecimal"),
    ],
)
def test_what_is_no_token_is_refused_by_its_name(text: str, word: str) -> None:
    with pytest.raises(InvalidTokenError, match=word):
        normalise(text)


def test_a_token_of_live_activities_is_as_good_as_any() -> None:
    assert normalise("AB" * 80) == "ab" * 80


def test_hex_with_a_colon_is_not_taken_for_firebase() -> None:
    assert is_fcm(FCM)
    assert not is_fcm("ab:cd")


def test_the_beginning_of_a_token_is_at_least_four_digits() -> None:
    assert normalise_prefix("<ABCD ef") == "abcdef"
    assert normalise_prefix("abcdef01…") == "abcdef01"
    for text in ("abc", "", "xyzz"):
        with pytest.raises(InvalidTokenError):
            normalise_prefix(text)


def test_tokens_are_shown_by_their_beginning_only() -> None:
    token = "0123456789abcdef" * 4
    assert prefix(token) == "01234567…"
    assert token[:9] not in redact(f"no valid aps-environment for {token}!")
    assert redact("short abc stays") == "short abc stays"
