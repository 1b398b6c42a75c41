"""The switch between namespaces: when packets arrive, by hand."""

from __future__ import annotations

import math
import os

import pytest

from benchmarks.namespaces import Link, Switch, require_root

LINK = Link(delay=0.5, bandwidth=8000.0)  # a packet of 100 bytes takes 0.1 s on the wire


def arrivals(switch: Switch) -> list[tuple[float, int, bytes]]:
    """Times, receivers and packets, in the order of their arrival."""
    found = []
    while math.isfinite(present := switch.next_arrival()):
        found += [(round(present, 6), *each) for each in switch.arrived(present)]
    return found


def packet(name: str, size: int = 100) -> bytes:
    return name.encode().ljust(size, b".")


def test_a_packet_takes_its_time_on_the_wire_and_the_delay():
    switch = Switch(2, LINK)
    assert switch.next_arrival() == math.inf
    switch.put(packet("a"), 0, 1, present=3.0)
    assert list(switch.arrived(3.59)) == []
    assert arrivals(switch) == [(3.6, 1, packet("a"))]


def test_packets_of_a_sender_leave_one_after_the_other_and_do_not_wait_for_the_delay():
    switch = Switch(3, LINK)
    for name, receiver in (("a", 1), ("b", 1), ("c", 2)):
        switch.put(packet(name), 0, receiver, present=0.0)
    switch.put(packet("d"), 0, 1, present=5.0)
    expected = [(0.6, 1, "a"), (0.7, 1, "b"), (0.8, 2, "c"), (5.6, 1, "d")]
    assert arrivals(switch) == [(time, receiver, packet(name)) for time, receiver, name in expected]


def test_a_receiver_of_several_senders_gets_no_more_than_its_link_carries():
    switch = Switch(4, LINK)
    for sender, name in enumerate("abc"):
        switch.put(packet(name), sender, 3, present=0.0)
    switch.put(packet("e"), 3, 0, present=0.0)  # the other direction is free
    assert [time for time, receiver, _ in arrivals(switch) if receiver == 3] == [0.6, 0.7, 0.8]


def test_nothing_is_lost_or_comes_in_another_order():
    switch = Switch(2, LINK)
    sent = [packet(str(number), size=40 + number % 7) for number in range(200)]
    for number, each in enumerate(sent):
        switch.put(each, 0, 1, present=0.001 * number)
    got = arrivals(switch)
    assert [each for _, _, each in got] == sent
    assert got[-1][0] == pytest.approx(8 * sum(map(len, sent)) / LINK.bandwidth + LINK.delay)


def test_without_root_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit) as ended:
        require_root()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: network namespaces: root on Linux and iproute2's ip are needed\n"
