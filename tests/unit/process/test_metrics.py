"""A metric is declared once: sending, merging and logging go by the fields of whatever class declares it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch

from fabric_ppo.architectures.exchange import TrainerStats
from fabric_ppo.architectures.overlap import PlayerStats
from fabric_ppo.ppo.update import UpdateStats
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.metrics import Metrics, merge_own, metric, own_metric
from fabric_ppo.rollouts.buffer import RolloutStats
from fabric_ppo.run.metrics import Requests, merge_stats
from tests.fixtures.counting import on_counted_ranks

MERGED = {"mean": np.mean, "sum": np.sum, "max": np.max}


@dataclass(frozen=True)
class Weather(Metrics):
    """Numbers that no module of the package has heard of; the kinds in an order that is nobody's own."""

    wind: float = metric("max", "Weather/wind")
    rain: float = metric("sum")
    heat: float = metric("mean", "Weather/heat")
    frost: float = metric("max")
    snow: float = metric("sum", "Weather/snow")

    def tagged(self) -> dict[str, float]:
        """What follows from two of them, too."""
        return super().tagged() | {"Weather/wet": self.rain + self.snow}


def measured(count, seed=0):
    """Numbers of so many ranks, of either sign and of all sizes, `[ranks, fields]`."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 5)) * 10.0 ** rng.integers(-6, 6, (count, 5))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_metric_that_nobody_knows_is_merged_by_its_kind(size):
    """Over ranks that exchange it in one collective, as every rank alike sees it."""
    numbers = measured(size)

    def merged(ranks):
        own = Weather(*numbers[ranks.rank].tolist())
        (of_ranks,) = ranks.gather_all([own.to_tensor()])
        return Weather.merge(of_ranks)

    results, calls = on_counted_ranks(size, merged)
    kinds = {"wind": "max", "rain": "sum", "heat": "mean", "frost": "max", "snow": "sum"}
    expected = {name: MERGED[kind](numbers[:, k]) for k, (name, kind) in enumerate(kinds.items())}
    for result in results:
        assert {name: getattr(result, name) for name in kinds} == pytest.approx(expected, rel=1e-12)
    assert len(set(results)) == 1
    assert calls == [0 if size == 1 else 1] * size


def test_only_what_has_a_tag_is_logged():
    values = Weather(1.0, 2.0, 3.0, 4.0, 5.0).tagged()
    assert values == {"Weather/wind": 1.0, "Weather/heat": 3.0, "Weather/snow": 5.0, "Weather/wet": 7.0}


def test_numbers_travel_bit_for_bit():
    values = (0.1, 2.0**53 - 1, -0.0, 5e-324, -1e308)
    sent = Weather(*values).to_tensor()
    assert (sent.dtype, tuple(sent.shape), Weather.width()) == (torch.float64, (5,), 5)
    came = Weather.of(sent)
    assert [getattr(came, each.name).hex() for each in fields(came)] == [value.hex() for value in values]


def test_what_is_not_finite_is_not_hidden_by_merging():
    """A rank that has lost its numbers is seen by all."""
    of_ranks = torch.tensor([[1.0] * 5, [float("nan")] * 5], dtype=torch.float64)
    assert all(np.isnan(getattr(Weather.merge(of_ranks), each.name)) for each in fields(Weather))


@pytest.mark.parametrize("kind", [UpdateStats, RolloutStats, TrainerStats, PlayerStats, Requests, Weather])
def test_every_field_is_declared_as_a_metric_and_no_tag_is_given_twice(kind):
    declared = [each.metadata for each in kind.declared()]
    assert {each.name for each in fields(kind)} - {each.name for each in kind.declared()} <= {"own"}
    assert all(each["merge"] in MERGED for each in declared)
    tags = [each["tag"] for each in declared if each["tag"]]
    assert len(tags) == len(set(tags))


def test_tags_of_all_numbers_of_an_update_are_different():
    kinds = (UpdateStats, RolloutStats, TrainerStats, PlayerStats, Requests)
    tags = [each.metadata["tag"] for kind in kinds for each in kind.declared() if each.metadata["tag"]]
    assert len(tags) == len(set(tags))


STATS = UpdateStats(*(float(number) for number in range(13)))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_metric_of_ones_own_is_merged_by_its_kind(size):
    """And everything else stays as it is."""
    numbers = measured(size)[:, :3]

    def merged(ranks):
        own = STATS
        for kind, value in zip(MERGED, numbers[ranks.rank], strict=True):
            own = own.with_metric(f"Own/{kind}", float(value), kind)
        return merge_stats(own, ranks.gather(own.to_tensor()), True, ranks)

    results, _ = on_counted_ranks(size, merged)
    expected = {f"Own/{kind}": merge(numbers[:, k]) for k, (kind, merge) in enumerate(MERGED.items())}
    for result in results:
        tagged = result.tagged()
        assert {tag: tagged.pop(tag) for tag in expected} == pytest.approx(expected, rel=1e-12)
        assert tagged == UpdateStats.merge(torch.stack([STATS.to_tensor()] * size)).tagged()


@pytest.mark.parametrize("having", [[], [0], [1], [0, 2]])
def test_ranks_that_lack_a_metric_wait_for_nobody(having):
    """As where it is of the episodes that ended, and some rank had none."""

    def merged(ranks):
        own = STATS.with_metric("Own/rank", torch.tensor(ranks.rank)) if ranks.rank in having else STATS
        has_own = ranks.gather(torch.tensor([bool(own.own)]))
        return merge_stats(own, ranks.gather(own.to_tensor()), bool(has_own.any()), ranks).tagged().get("Own/rank")

    results, _ = on_counted_ranks(3, merged)
    assert results == [np.mean(having) if having else None] * 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_of_ones_own_what_is_not_finite_shows(value):
    merged = {kind: merge_own([own_metric("x", 1.0, kind), own_metric("x", value, kind)])["x"][1] for kind in MERGED}
    with np.errstate(all="ignore"):
        expected = {kind: merge([1.0, value]) for kind, merge in MERGED.items()}
    assert {kind: str(float(each)) for kind, each in merged.items()} == {k: str(float(v)) for k, v in expected.items()}


@pytest.mark.parametrize(
    ("tag", "value", "merge", "message"),
    [
        ("Own/x", 1.0, "median", "the metric Own/x: merge 'median': one of mean, sum, max is expected"),
        ("Own/x", torch.ones(2), "mean", "the metric Own/x: a number, or a tensor of one, is expected"),
        ("Own/x", "high", "mean", "the metric Own/x: a number, or a tensor of one, is expected"),
        *[
            (
                tag,
                1.0,
                "mean",
                f"the metric {tag!r}: a name of printable characters, but not step or update, is expected",
            )
            for tag in ("step", "update", "", " ", "a\nb", "\udc80", 3, None, ["x"])
        ],
        ("Info/approx_kl", 1.0, "mean", "the metric Info/approx_kl: another name is expected, this one is taken"),
    ],
)
def test_what_is_no_metric_is_refused_in_one_line(tag, value, merge, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        STATS.with_metric(tag, value, merge)
