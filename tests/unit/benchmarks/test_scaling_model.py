"""The model of an update on many ranks: closed forms, limits, and what must grow."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.scaling import WORKLOADS, fastest
from benchmarks.scaling_model import (
    WAYS,
    Network,
    Work,
    all_gather_seconds,
    all_reduce_seconds,
    averaging_seconds,
    decoupled,
    efficiency,
    expected_maximum,
    local_data,
    overlapped,
    rows_per_second,
    shared_data,
    slowest,
)

WORK = Work(256, 64, 4, 10_000, 50, 5000, 2e-5, 1e-4, 1e-6, 2e-3)
NETWORK = Network(1e-3, 1e8)
PERFECT = Network(0.0, math.inf)
COUPLED, MANY = ("local data", "--share-data"), (2, 3, 8, 64, 1024)


@pytest.mark.parametrize("network", [NETWORK, replace(NETWORK, tree=True), replace(NETWORK, host_ranks=8)])
@pytest.mark.parametrize("way", COUPLED)
def test_one_rank_waits_for_nobody(network, way):
    """Its update is the sum of what it does, by hand: 16 steps of 64 rows."""
    parts = WAYS[way](WORK, replace(network, spread=0.3, step_spread=0.3), 1)
    assert (parts.averaging, parts.exchange) == (0, 0)
    assert parts.total == pytest.approx(256 * 2e-5 + 16 * (1e-4 + 64e-6) + 2e-3)
    assert all_reduce_seconds(1e9, 1, network) == all_gather_seconds(1e9, 1, network) == 0


@pytest.mark.parametrize("ranks", MANY)
def test_without_delays_all_scale_ideally(ranks):
    assert efficiency("local data", WORK, PERFECT, ranks) == pytest.approx(1)
    # nor has a player that steps as fast as all ranks do more to do, but for fewer ranks that train
    work = replace(WORK, player_speed=ranks)
    parts = decoupled(work, PERFECT, ranks)
    assert (parts.averaging, parts.exchange) == (0, 0)
    assert parts.rollout == local_data(work, PERFECT, ranks).rollout
    assert parts.training == pytest.approx(16 * (1e-4 + 64e-6 * ranks / (ranks - 1)))


@pytest.mark.parametrize("ranks", MANY)
def test_the_ring_is_the_textbooks_with_twice_the_latency(ranks):
    """2 (W - 1) steps; the bytes of a rank are 2 (W - 1) / W of all, whatever the latency."""
    size = 40_000
    latency = all_reduce_seconds(size, ranks, replace(NETWORK, bandwidth=math.inf))
    assert latency == pytest.approx(4 * (ranks - 1) * NETWORK.latency)
    wire = all_reduce_seconds(size, ranks, replace(NETWORK, latency=0.0))
    assert wire == pytest.approx(2 * (ranks - 1) / ranks * 8 * size / NETWORK.bandwidth)
    assert all_reduce_seconds(size, ranks, NETWORK) == pytest.approx(latency + wire)


def test_a_ring_is_what_its_ranks_do_one_after_the_other():
    """Step by step: a rank sends when its receiver's word has come, and when it has what it sends."""
    size, delay, wire = 40_000, 1e-3, 8 * 40_000 / 1e8
    for ranks in (2, 3, 5, 8):
        done = np.zeros(ranks)
        for _ in range(2 * (ranks - 1)):
            ready = done + delay  # each tells the rank before it
            sent = np.maximum(np.roll(done, 1), ready)
            done = sent + delay + wire / ranks
        assert all_reduce_seconds(size, ranks, Network(delay, 1e8)) == pytest.approx(float(done.max()))


# seconds that gloo took over links as they were measured (docs/scaling.md)
@pytest.mark.parametrize(
    ("ranks", "size", "latency", "bandwidth", "measured"),
    [
        (2, 36_620, 5.18e-3, 48.3e6, 27.1e-3),
        (2, 36_620, 20.3e-3, 9.7e6, 111.8e-3),
        (4, 40_000, 10.23e-3, 96e6, 128.7e-3),
        (8, 40_000, 10.21e-3, 96e6, 297.1e-3),
    ],
)
def test_all_reduces_that_were_measured_are_predicted(ranks, size, latency, bandwidth, measured):
    assert all_reduce_seconds(size, ranks, Network(latency, bandwidth)) == pytest.approx(measured, rel=0.05)


def test_long_segments_are_cut():
    """Gloo sends no more than a megabyte at once, and two of them before the next latency."""
    size, ranks = 2**20 * 16, 2
    latency = all_reduce_seconds(size, ranks, replace(NETWORK, bandwidth=math.inf))
    assert latency == pytest.approx(2 * 4 * 2 * NETWORK.latency)
    wire = all_reduce_seconds(size, ranks, replace(NETWORK, latency=0.0))
    assert wire == pytest.approx(8 * size / NETWORK.bandwidth)


def test_a_tree_grows_with_the_logarithm():
    tree = Network(1e-3, math.inf, tree=True)
    assert [round(1e3 * all_reduce_seconds(4, ranks, tree)) for ranks in (2, 4, 8, 1024)] == [2, 4, 6, 20]


def test_ranks_of_one_host_do_not_use_the_network():
    slow = Network(1.0, 1.0, host_ranks=8)
    assert averaging_seconds(WORK, slow, 8, 8) < 1e-3 < averaging_seconds(WORK, slow, 9, 9)
    # trainers share memory only where their player is on their host, too
    assert averaging_seconds(WORK, slow, 8, 9) > 1
    for way, of in WAYS.items():
        assert of(WORK, slow, 8).total < 0.1 < 1 < of(WORK, slow, 9).total, way
        assert of(WORK, slow, 8) == of(WORK, replace(slow, latency=9.0, bandwidth=1e9), 8), way


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_expected_maximum_is_the_textbooks(count):
    """H. A. David: 0, 1 / sqrt(pi), 3 / (2 sqrt(pi)), and 1.16296 for five."""
    known = {1: 0.0, 2: 1 / math.sqrt(math.pi), 3: 1.5 / math.sqrt(math.pi), 5: 1.1629644736}
    assert expected_maximum(count) == pytest.approx(known[count], abs=1e-6)


def test_the_expected_maximum_of_many_is_that_of_draws_and_below_its_bound():
    drawn = np.random.default_rng(1).standard_normal((4000, 100)).max(axis=1)
    assert expected_maximum(100) == pytest.approx(drawn.mean(), abs=4 * drawn.std() / math.sqrt(len(drawn)))
    values = [expected_maximum(count) for count in (1, 2, 10, 1024, 10**6)]
    assert values == sorted(values)
    for count, value in zip((2, 10, 1024, 10**6), values[1:], strict=True):
        assert value <= math.sqrt(2 * math.log(count))


def test_the_slowest_rank_is_waited_for():
    assert slowest(2.0, 0.0, 100) == slowest(2.0, 0.5, 1) == 2.0
    assert slowest(2.0, 0.5, 2) == pytest.approx(2 + 1 / math.sqrt(math.pi))
    even, uneven = (local_data(WORK, replace(PERFECT, spread=each), 8).rollout for each in (0.0, 0.1))
    assert uneven == pytest.approx(even * (1 + 0.1 * expected_maximum(8)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ranks", MANY)
def test_an_update_takes_longer_the_worse_anything_is(way, ranks):
    """More latency, less bandwidth, more spread, more bytes, slower ranks; and more ranks."""

    def seconds(work: Work = WORK, network: Network = NETWORK, count: int = ranks) -> float:
        return WAYS[way](work, network, count).total

    usual = seconds() * (1 - 1e-12)  # sums in another order round otherwise
    worse = [{"latency": 2e-3}, {"bandwidth": 5e7}, {"spread": 0.1}, {"step_spread": 0.1}]
    for change in worse:
        assert seconds(network=replace(NETWORK, **change)) >= usual
    for name in ("epochs", "weights", "row_bytes", "collect_seconds", "step_seconds", "row_seconds", "other_seconds"):
        assert seconds(replace(WORK, **{name: 2 * getattr(WORK, name)})) >= usual, name
    assert seconds(count=2 * ranks) > usual


@pytest.mark.parametrize("ranks", MANY)
def test_shared_rows_cost_what_is_sent_and_done_with_them(ranks):
    apart, shared = local_data(WORK, NETWORK, ranks), shared_data(WORK, NETWORK, ranks)
    assert replace(shared, exchange=0) == replace(apart, exchange=0)
    sent = 8 * (ranks - 1) * 256 * 50 / 1e8
    assert shared.exchange - apart.exchange >= sent - 8 * (ranks - 1) * 32 / 1e8
    assert shared_data(WORK, NETWORK, 1) == local_data(WORK, NETWORK, 1)


@pytest.mark.parametrize("network", [NETWORK, PERFECT, Network(20e-3, 1e7)])
@pytest.mark.parametrize("ranks", MANY)
def test_overlap_takes_the_longer_of_both_and_no_more_than_both(network, ranks):
    both, at_once = decoupled(WORK, network, ranks), overlapped(WORK, network, ranks)
    assert at_once.total >= max(both.rollout, both.training + both.averaging)
    revaluing, answer = ranks * 256 * 1e-6 / 3, network.latency
    assert at_once.total <= both.total + revaluing + answer
    assert at_once.hidden > 0


def test_a_decoupled_run_has_a_trainer():
    for way in (decoupled, overlapped):
        with pytest.raises(ValueError, match="at least one trainer"):
            way(WORK, NETWORK, 1)


def test_one_trainer_averages_with_nobody():
    """So that between two hosts that are far apart a player and a trainer are the fastest."""
    far = Network(20e-3, 1e7)
    assert decoupled(WORK, far, 2).averaging == 0
    assert fastest(WORK, far, 2) == "--overlap"
    assert local_data(WORK, far, 2).total > 5 * decoupled(WORK, far, 2).total


def test_what_is_the_same_speed_is_the_simplest_way():
    free = replace(WORK, row_bytes=0, collect_seconds=0.0, row_seconds=0.0)
    assert fastest(free, PERFECT, 1) == "local data"


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_works_are_those_of_the_pages(name):
    work = WORKLOADS[name]
    assert work.gradient_steps == {"cartpole": 20, "lunarlander": 640, "pong": 32}[name]
    speed = rows_per_second("local data", work, NETWORK, 1)
    parts = local_data(work, NETWORK, 1)
    assert speed == pytest.approx(work.rows / (parts.rollout + parts.training + parts.other))
