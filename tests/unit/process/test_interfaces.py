"""The interface that leads to another host, held against the addresses that interfaces have."""

from __future__ import annotations

import socket

import pytest

from fabric_ppo.process.interfaces import interface_towards
from fabric_ppo.tools.commands import train


class Probe(socket.socket):
    """A socket that finds the address of this host which `own` names, whatever it is connected to."""

    own = "127.0.0.1"

    def connect(self, address):
        pass

    def getsockname(self):
        return self.own, 9


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.1.1", "localhost", "no.such.host.invalid", "::1", ""])
def test_where_it_is_not_known_or_the_loopback_there_is_none(address):
    assert interface_towards(address) == ""


def test_an_address_that_no_interface_has_leads_nowhere(monkeypatch):
    monkeypatch.setattr(Probe, "own", "203.0.113.77")
    monkeypatch.setattr(socket, "socket", Probe)
    assert interface_towards("198.51.100.1") == ""


def test_it_is_one_of_this_host():
    found = interface_towards("198.51.100.1")
    assert found in ("", *(name for _, name in socket.if_nameindex() if name != "lo"))


def test_what_is_set_already_stays(monkeypatch):
    monkeypatch.setattr(train, "interface_towards", lambda address: "eth7")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    assert train._interfaces("10.0.0.1") == {"NCCL_SOCKET_IFNAME": "eth7"}
