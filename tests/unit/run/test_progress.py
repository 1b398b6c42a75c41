"""The plain lines of a run, with a clock that is given: speed and time left do not jump, and follow what changes."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from fabric_ppo.config import TorchConfig
from fabric_ppo.run import progress as module
from fabric_ppo.run.counts import Counts
from fabric_ppo.run.progress import Progress


@pytest.fixture
def shown(monkeypatch):
    """Print each line at once; what was printed, in order, as (steps per second, seconds left)."""
    lines = []
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(module, "print_line", lambda text, stream: lines.append(text))

    def read():
        found = [re.fullmatch(r".* \| ([\d,.]+) steps/s \| ([\d:]+) left", line) for line in lines]
        return [(float(each[1].replace(",", "")), seconds_of(each[2])) for each in found]

    return read


def seconds_of(clock: str) -> int:
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return seconds


def progress_of(total, begun=0, enabled=True):
    return Progress(TorchConfig(), Path("logs/x"), SimpleNamespace(path=None, saved_at=None), total, begun, enabled)


def run(durations, steps=100, total=100_000, begun=0):
    progress = progress_of(total, begun)
    for number, seconds in enumerate(durations, start=1):
        progress.update(Counts(env_steps=begun + number * steps), {}, seconds)
    progress.close()


def test_a_slow_first_update_is_forgotten_with_the_second(shown):
    """It compiles and warms up: 20 s, and then 0.5 s for 100 steps."""
    run([20.0] + [0.5] * 30)
    assert shown()[0] == (5, 19_980)
    assert shown()[1:] == [(200, (100_000 - number * 100) // 200) for number in range(2, 32)]


@pytest.mark.parametrize("mean", [0.002, 0.5, 20.0])
@pytest.mark.parametrize("seed", range(3))
def test_time_left_does_not_jump(shown, mean, seed):
    """Updates take from half to one and a half of their mean; one in ten waits for an evaluation."""
    draw = random.Random(seed)
    durations = [mean * (4 if number % 10 == 0 else draw.uniform(0.5, 1.5)) for number in range(300)]
    run(durations, total=10**7)
    true = 100 / (mean * 1.3)
    settled = shown()[20:]
    assert all(abs(speed / true - 1) < 0.35 for speed, _ in settled)
    pairs = itertools.pairwise(settled)
    assert all(abs(after / before - 1) < 0.2 for (before, _), (after, _) in pairs)


@pytest.mark.parametrize("before", [0.001, 0.1, 10.0])
def test_a_change_that_stays_is_followed(shown, before):
    """Half a minute or twenty updates later, whichever is more, it is all that counts."""
    after = 3 * before
    count = max(21, min(1000, int(30 / after) + 2))
    run([before] * 50 + [after] * count, total=10**9)
    assert shown()[-1][0] == pytest.approx(100 / after, rel=0.02)


def test_what_a_resumed_run_had_before_does_not_count(shown):
    run([1.0, 1.0, 1.0], steps=100, total=10_000, begun=5_000)
    assert shown() == [(100, 49), (100, 48), (100, 47)]


def test_nothing_is_printed_where_it_is_off(shown):
    progress = progress_of(1000, enabled=False)
    progress.update(Counts(env_steps=100), {}, 1.0)
    progress.close()
    assert shown() == []


@pytest.mark.parametrize("seconds", [0.0, 1e-12])
def test_a_clock_that_stands_still_is_no_error(shown, seconds):
    run([seconds] * 3)
    assert len(shown()) == 3
