"""How hard the fuzz tests try: bounded and the same examples every time, unless SENDER_TEST_FUZZ says otherwise.

SENDER_TEST_FUZZ=20 runs twenty times as many examples, and other ones each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FACTOR = float(os.environ.get("SENDER_TEST_FUZZ", "1"))
DIGITS = "0123456789abcdef"


def fuzz(examples: int) -> Callable[[Any], Any]:
    """A test with so many examples, times the factor."""
    return settings(
        max_examples=max(1, int(examples * FACTOR)),
        derandomize=FACTOR == 1,
        deadline=None,  # a busy machine is no fault
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
        print_blob=True,
    )


#: Text that programs trip over, beside whatever Hypothesis thinks of.
AWKWARD = (
    "",
    " ",
    "\0",
    "a\0b",
    "\n",
    "a\nb",
    "\r\n",
    "\t",
    "\ufeff",
    "\ufeffa",
    '"',
    "'",
    '""',
    "'; DROP TABLE devices; --",
    "{s}",
    "%s",
    "%(x)s",
    "{0.__class__}",
    "{{7*7}}",
    "${HOME}",
    "$(id)",
    "\\",
    "\\N",
    "\\.",
    "-",
    "--",
    "-1",
    "--help",
    "=",
    "@/etc/passwd",
    "../../etc/passwd",
    "/dev/null",
    "0",
    "-0",
    "00",
    "1",
    "1e999",
    "-1e999",
    "1e-999",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "Infinity",
    "0x10",
    "1_000",
    "٣",
    "²",
    "9" * 19,
    "9" * 40,
    "9" * 5000,
    "true",
    "null",
    "None",
    "[]",
    "{}",
    '{"a": 1}',
    "[" * 2000,
    "2027-01-01",
    "2027-01-01T00:00:00Z",
    "2027-13-01",
    "0001-01-01T00:00:00+14:00",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999-14:00",
    "9999-12-31T23:59:59Z",
    "1785060900000",
    "-62135596800",
    "253402300800",
    "🎉",
    "e\u0301",
    "\u202eabc",
    "\u2028",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "[bold]x[/bold]",
    "[/]",
    "x" * 300,
    "x" * 20_000,
    "ß" * 200,
)

awkward = st.integers(0, len(AWKWARD) - 1).map(AWKWARD.__getitem__)  # sampled_from would repeat them all in its repr
#: Any text that UTF-8 can hold.
texts = st.one_of(awkward, st.text(st.characters(codec="utf-8"), max_size=60))
#: Also text that it cannot: what the system hands over of arguments that are no UTF-8.
raw_texts = st.one_of(texts, st.text(max_size=20), st.sampled_from(["\ud800", "a\udcff", "\udce9t\udce9"]))

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, float("nan"), float("inf"), -0.0]),
)
#: Whatever JSON can hold, and Python's reader lets through.
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, raw_texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(raw_texts, inner, max_size=4)),
    max_leaves=12,
)
tokens = st.text(DIGITS, min_size=64, max_size=64)
