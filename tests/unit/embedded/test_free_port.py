"""A port is given to one who asks for it, and not to another who asks at the same moment."""

import os
import random
import socket
import sys

import pytest

from processor.embedded import broker

ONE, TWO = 10 * os.getpid(), 10 * os.getpid() + 1
"""Drawn as ports; no other process of this machine has them."""


@pytest.fixture(autouse=True)
def _drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([ONE, ONE, TWO])
    monkeypatch.setattr(broker, "_is_free", lambda _: True)
    monkeypatch.setattr(broker, "_claims", {})
    monkeypatch.setattr(random, "choice", lambda _: next(drawn))


def test_a_port_is_given_once() -> None:
    assert [broker.free_port(), broker.free_port()] == [ONE, TWO]

    for claim in broker._claims.values():
        os.close(claim)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets")
def test_a_port_of_another_process_is_not_given_again() -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"\0taskflow-port-{ONE}")

        assert broker.free_port() == TWO

    os.close(broker._claims[TWO])
