"""Where `sender up` puts Flower."""

from __future__ import annotations

import socket

import pytest

from sender.errors import ConfigurationError
from sender.settings import Settings
from sender.stack.flower import Flower, check_port, choose_flower, free_port


def test_a_taken_port_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        assert taken < free_port("127.0.0.1", taken) <= taken + 100


def test_an_address_that_is_not_ours_is_named_with_the_settings_to_change() -> None:
    with pytest.raises(ConfigurationError, match="SENDER_FLOWER_ADDRESS"):
        free_port("192.0.2.1", 5555)


def test_the_configured_password_is_kept_and_another_one_is_made_up_each_time() -> None:
    assert choose_flower(Settings(flower_password="mine", flower_port=0)).password == "mine"  # type: ignore[arg-type]
    one, other = (choose_flower(Settings(flower_port=0)) for _ in range(2))
    assert one.password != other.password
    assert one.password not in repr(one)


@pytest.mark.parametrize(
    ("address", "url"),
    [("127.0.0.1", "http://127.0.0.1:1"), ("0.0.0.0", "http://127.0.0.1:1"), ("::1", "http://[::1]:1")],
)
def test_its_url_is_one_that_a_browser_on_this_machine_can_open(address: str, url: str) -> None:
    assert Flower(address=address, port=1, password="x").url == url


def test_it_does_not_answer_where_nobody_listens() -> None:
    assert not Flower(address="127.0.0.1", port=1, password="x").answers()


def test_a_port_that_somebody_listens_on_is_refused_in_plain_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} .*SENDER_FLOWER_PORT"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", 0)
