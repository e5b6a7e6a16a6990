"""What the install asks for: the client fits beside an application's own Celery, the worker has one that was tried."""

from __future__ import annotations

import tomllib

import pytest
from packaging.requirements import Requirement

from docs.generate import DOCS

PROJECT = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]


def versions(requirements: list[str]) -> dict[str, Requirement]:
    return {each.name: each for each in map(Requirement, requirements)}


CLIENT = versions(PROJECT["dependencies"])
WORKER = versions(PROJECT["optional-dependencies"]["worker"])


@pytest.mark.parametrize(
    ("kombu", "redis"),
    [("5.5.4", "5.2.1"), ("5.6.2", "6.4.0"), ("5.7.0", "8.1.0")],  # the newest under celery[redis] 5.5, 5.6, 5.7
)
def test_the_client_fits_beside_the_celery_of_an_application(kombu: str, redis: str) -> None:
    assert "celery" not in CLIENT
    assert kombu in CLIENT["kombu"].specifier
    assert redis in CLIENT["redis"].specifier


def test_the_worker_has_the_celery_in_which_stalls_after_a_reconnect_are_fixed() -> None:
    assert "5.7.0" in WORKER["celery"].specifier and "5.6.3" not in WORKER["celery"].specifier
    assert "5.7.0" in WORKER["kombu"].specifier and "5.6.2" not in WORKER["kombu"].specifier
