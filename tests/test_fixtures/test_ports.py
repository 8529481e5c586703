"""Each kind of port fails in its own way."""

from __future__ import annotations

import socket

import pytest

from tests.fixtures.ports import free_port


def test_a_free_port_can_be_bound() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass


def test_a_closed_port_refuses(closed_port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", closed_port), timeout=5)


def test_a_silent_port_connects_and_says_nothing(silent_port: int) -> None:
    with socket.create_connection(("127.0.0.1", silent_port), timeout=5) as client:
        client.sendall(b"hello?")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_a_blackhole_never_connects(blackhole_port: int) -> None:
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", blackhole_port), timeout=0.5)
