"""One stack for all the plugs that are pulled."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from sender.errors import MissingExtraError
from tests.chaos.stack import ChaosStack

DEVICES = 15_000


@pytest.fixture(scope="package")
def stack() -> Iterator[ChaosStack]:
    try:
        with ChaosStack(DEVICES) as stack:
            yield stack
    except MissingExtraError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
