"""Who a campaign is for: segments, their two written forms (JSON, `--where`), and the canary's sample.

Values only: the SQL of an audience is made in `sender.store.segments`.
"""

from sender.audience.segment import (
    DEEPEST,
    FIELDS,
    And,
    Compare,
    Contains,
    Everyone,
    Field,
    Moment,
    Not,
    NotSent,
    OneOf,
    Or,
    Percentage,
    Scalar,
    Segment,
    Span,
    parse_where,
)

__all__ = [
    "DEEPEST",
    "FIELDS",
    "And",
    "Compare",
    "Contains",
    "Everyone",
    "Field",
    "Moment",
    "Not",
    "NotSent",
    "OneOf",
    "Or",
    "Percentage",
    "Scalar",
    "Segment",
    "Span",
    "parse_where",
]
