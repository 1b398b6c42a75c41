"""The callback of a sweep's runs: it reports, waits for the answer, and stops where the sweep says so."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace

import pytest

from fabric_ppo.tools.sweep.reporter import CHANNEL, GO_ON, PRUNE, Reporter

RUN = SimpleNamespace(update=3, num_updates=8)


@pytest.mark.parametrize(("answer", "stops"), [(GO_ON, False), (PRUNE, True), (b"", False)])
def test_an_evaluation_is_reported_and_answered(monkeypatch, answer, stops):
    """An empty answer: the sweep is gone, and the run goes on."""
    ours, theirs = socket.socketpair()
    monkeypatch.setenv(CHANNEL, str(theirs.fileno()))
    said = []

    def sweep():
        said.append(ours.recv(1000))
        ours.send(answer) if answer else ours.close()

    thread = threading.Thread(target=sweep)
    thread.start()
    assert Reporter().on_evaluation(RUN, {"return_mean": 1.5}) is stops
    thread.join()
    assert said == [b'{"update": 3, "num_updates": 8, "return_mean": 1.5}\n']
    ours.close()
    theirs.close()


def test_without_a_sweep_it_does_nothing(monkeypatch):
    """As for a run of a sweep that its user goes on with."""
    monkeypatch.delenv(CHANNEL, raising=False)
    assert Reporter().on_evaluation(RUN, {"return_mean": 1.5}) is False
