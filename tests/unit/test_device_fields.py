from datetime import UTC, datetime, timedelta

import pytest

from sender.registry.device_fields import (
    check_attributes,
    check_locale,
    check_time,
    check_timezone,
    check_user,
    parse_time,
)

NOW = datetime(2026, 7, 26, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("fr_FR", "fr-FR"),
        ("FR-fr", "fr-FR"),
        ("zh-hans-cn", "zh-Hans-CN"),
        ("en_US@calendar=buddhist", "en-US"),
        ("en_US.UTF-8", "en-US"),
        ("es-419", "es-419"),
        ("de", "de"),
    ],
)
def test_a_locale_is_kept_in_one_form(given: str, kept: str) -> None:
    assert check_locale(given) == kept


@pytest.mark.parametrize("text", ["", "f", "french-", "xx_y_", "fr FR", "12"])
def test_what_is_no_locale_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no locale"):
        check_locale(text)


def test_a_time_zone_is_one_of_the_iana_database() -> None:
    assert check_timezone("Europe/Paris") == "Europe/Paris"
    for name in ("Europe/Pariss", "GMT+0200x", "", "../etc/passwd"):
        with pytest.raises(ValueError, match="IANA"):
            check_timezone(name)


def test_a_user_is_text_or_a_whole_number() -> None:
    assert check_user(42) == "42"
    for user in ("", "  ", "x" * 256, "nul\0", "\ud800", True, 1.5):
        with pytest.raises(ValueError, match=r"."):
            check_user(user)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "attributes",
    [[], {1: 2}, {"": 1}, {"x" * 101: 1}, {"a": float("nan")}, {"a": "\0"}, {"a": {"b": ["\0"]}}, {"a": "x" * 17_000},
     {"a": object()}, {"a": "\ud800"}],
)  # fmt: skip
def test_attributes_that_json_or_postgresql_would_not_keep_are_refused(attributes: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_attributes(attributes)  # type: ignore[arg-type]


def test_a_backslash_before_u0000_is_ordinary_text() -> None:
    assert check_attributes({"a": "\\u0000"}) == {"a": "\\u0000"}


@pytest.mark.parametrize(
    "text", ["2026-07-26T10:15:00Z", "2026-07-26 12:15:00+02:00", "2026-07-26T10:15:00", "1785060900", "1785060900000"]
)
def test_a_time_in_a_file_may_be_iso_or_unix(text: str) -> None:
    assert parse_time(text) == datetime(2026, 7, 26, 10, 15, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "yesterday", "inf", "nan", "9" * 400])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no time"):
        parse_time(text)


def test_a_time_is_aware_and_not_in_the_future() -> None:
    assert check_time(NOW + timedelta(hours=1), NOW) == NOW + timedelta(hours=1)
    for moment in (NOW + timedelta(days=2), NOW.replace(tzinfo=None)):
        with pytest.raises(ValueError, match=r"future|aware"):
            check_time(moment, NOW)
