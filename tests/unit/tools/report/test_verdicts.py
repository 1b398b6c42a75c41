"""Sentences of a report: each illness of a run is seen, and a healthy run is left alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fabric_ppo.tools.report.verdicts import DIAGNOSTICS, RETURN, Verdict, combine, verdict
from tests.fixtures.run_folders import columns

BY_TAG = {each.tag: each for each in (RETURN, *DIAGNOSTICS)}
N = 40
RNG = np.random.default_rng(0)


def judge(tag, values, others=None, **flags):
    """What is said of a metric, of a run that has others."""
    columns = {name: np.asarray(each, np.float64) for name, each in {tag: values, **(others or {})}.items()}
    return verdict(BY_TAG[tag], columns, flags)


@pytest.mark.parametrize("tag", BY_TAG)
def test_a_healthy_run_is_left_alone(tag):
    assert judge(tag, columns(N)[tag]).level == "good"
    assert BY_TAG[tag].healthy.endswith(".")


ILL = {
    "kl usually high": ("Info/approx_kl", [0.2] * N, "warning", "Too high: 0.2"),
    "kl high in a third": ("Info/approx_kl", [0.01, 0.01, 0.09] * 14, "warning", "Above 0.05 in 14 of 42 updates"),
    "kl high once": ("Info/approx_kl", [0.01] * N + [0.3], "note", "above 0.05 once, up to 0.3"),
    "kl of a policy that stays": ("Info/approx_kl", [1e-6] * N, "note", "hardly moves"),
    "most are clipped": ("Info/clip_fraction", [0.6] * N, "warning", "60% of the ratios"),
    "none is clipped": ("Info/clip_fraction", [0.0] * N, "note", "hardly acts; larger steps may be possible"),
    "kl of an update that destroyed the policy": ("Info/approx_kl", [1857.0] + [0.0] * N, "warning", "up to 1,857"),
    "kl ten times too large": ("Info/approx_kl", [0.01] * N + [0.6], "warning", "up to 0.6"),
    "values are worse than a constant": ("Info/explained_variance", [-0.5] * N, "warning", "Negative (-0.50)"),
    "values explain little": ("Info/explained_variance", [0.1] * N, "note", "little"),
    "values explain all": ("Info/explained_variance", [0.2] * 9 + [0.999] * N, "good", "near 1"),
    "entropy collapsed": ("Loss/entropy_loss", [-0.69] * 4 + [-0.001] * 36, "warning", "had collapsed after 5 of 40"),
    "entropy collapsed in the first update": ("Loss/entropy_loss", [-0.01] * N, "warning", "after 1 of 40"),
    "no entropy at all": ("Loss/entropy_loss", [0.0] * N, "warning", "had collapsed after 1 of 40"),
    "entropy that is rounded below zero": ("Loss/entropy_loss", [-0.6] + [1e-9] * N, "warning", "had collapsed"),
    "entropy collapsed in a short run": ("Loss/entropy_loss", [-0.01, 0.0, 0.0], "warning", "had collapsed"),
    "certain in the end": ("Loss/entropy_loss", -np.linspace(0.69, 0.001, N), "note", "hardly any randomness"),
    "as random as before": ("Loss/entropy_loss", [-0.69] * N, "note", "nearly as random"),
    "noise that grows": ("Loss/entropy_loss", -np.linspace(-1, 5, N), "warning", "it grows"),
    "gradients that grow": ("Info/grad_norm", np.geomspace(0.1, 1000, N), "warning", "Grows from"),
    "a gradient's peak": ("Info/grad_norm", [0.5] * N + [900.0], "warning", "peak of 900"),
    "values' loss that grows": ("Loss/value_loss", np.geomspace(1, 1e4, N), "note", "it grows"),
    "a policy loss far from zero": ("Loss/policy_loss", [-2.0] * N, "note", "far from zero"),
    "no progress": ("Rewards/rew_avg", [20.0] * N, "warning", "no progress"),
    "a fall": ("Rewards/rew_avg", [*range(0, 200, 10), *range(200, 0, -10)], "warning", "then fell to"),
    "infinite": ("Loss/value_loss", [1.0] * N + [math.inf], "warning", "Infinite in 1 of 41 updates"),
    "always infinite": ("Loss/value_loss", [-math.inf] * N, "warning", "Infinite in 40 of 40 updates"),
    "not a number": ("Info/explained_variance", [0.8] * N + [math.nan] * 2, "note", "No value in 2 of 42 updates"),
    "nothing": ("Info/grad_norm", [math.nan] * N, "note", "No value was logged"),
    "empty": ("Info/grad_norm", [], "note", "No value was logged"),
    "one update": ("Info/approx_kl", [0.2], "warning", "of 1 update only"),
}


@pytest.mark.parametrize("case", ILL)
def test_an_illness_is_seen(case):
    tag, values, level, words = ILL[case]
    found = judge(tag, values)
    assert found.level == level, found.text
    assert words in found.text


def test_the_entropy_of_continuous_actions_may_be_negative():
    assert judge("Loss/entropy_loss", np.linspace(-1.4, 3, N)).level == "good"


def test_returns_have_gaps_where_no_episode_ended():
    values = np.array(columns(N)["Rewards/rew_avg"], np.float64)
    values[::3] = math.nan
    assert judge("Rewards/rew_avg", values) == judge("Rewards/rew_avg", values[np.isfinite(values)])


def test_what_is_scaled_down_is_said():
    assert "--max-grad-norm 0.5" in judge("Info/grad_norm", [3.0] * N, max_grad_norm=0.5).text
    assert "--max-grad-norm" not in judge("Info/grad_norm", [0.1] * N, max_grad_norm=0.5).text


@pytest.mark.parametrize("tag", BY_TAG)
@pytest.mark.parametrize("values", [[0.0], [0.0] * 9, [-1e300, 1e300], [1e-300] * 5, [math.nan, 1.0]])
def test_odd_values_have_a_sentence(tag, values):
    with np.errstate(all="raise", under="ignore"):
        assert judge(tag, values).text.endswith((".", "?"))


def test_of_several_runs_the_gravest_are_named():
    good, note, warning = Verdict("good", "Fine."), Verdict("note", "Odd."), Verdict("warning", "Bad.")
    assert combine({"a": note}) == note
    assert combine({"a": good, "b": good}).level == "good"
    found = combine({"a": good, "b": warning, "c": note, "d": warning})
    assert found.level == "warning"
    assert found.text == "2 of 4 runs (b, d) may have a problem here. b: Bad."
    assert combine({"a": good, "b": note}).text == "1 of 2 runs (b) is worth a look. b: Odd."


HEALTHY_ENTROPY, NO_ENTROPY = [-0.6] * N, [-0.6] * 3 + [-1e-4] * (N - 3)
HEALTHY_KL, NO_KL = [0.01] * N, [0.4] + [1e-9] * (N - 1)
ADVICE = ("larger steps", "step too small", "smaller --learning-rate or fewer")


@pytest.mark.parametrize(
    ("entropy", "kl", "words"),
    [
        (NO_ENTROPY, HEALTHY_KL, "the entropy has collapsed"),
        (NO_ENTROPY, NO_KL, "the entropy has collapsed"),
        ([0.0] * N, NO_KL, "the entropy has collapsed"),
        (-np.linspace(0.69, 0.001, N), HEALTHY_KL, "the entropy has collapsed"),
        (HEALTHY_ENTROPY, NO_KL, "the policy hardly moves"),
        ([5.0] * N, [1e-6] * N, "the policy hardly moves"),
    ],
)
def test_no_larger_steps_are_advised_to_a_policy_that_cannot_move(entropy, kl, words):
    others = {"Loss/entropy_loss": entropy, "Info/approx_kl": kl}
    found = judge("Info/clip_fraction", [0.3] + [0.0] * (N - 1), others)
    assert found.level == "note"
    assert words in found.text
    assert not any(each in found.text for each in ADVICE)


def test_a_high_divergence_before_a_collapse_is_a_warning():
    others = {"Loss/entropy_loss": NO_ENTROPY}
    found = judge("Info/approx_kl", [0.01, 0.01, 0.4] + [0.0] * (N - 3), others)
    assert (found.level, "entropy" in found.text) == ("warning", True)
    assert judge("Info/approx_kl", [1e-6] * N, others).text.endswith("the entropy has collapsed.")


def test_a_run_without_an_episode_says_so():
    updates = {"update": range(1, N + 1), "Game/episodes": [0.0] * N}
    assert verdict(RETURN, {name: np.asarray(each, np.float64) for name, each in updates.items()}, {}) == Verdict(
        "warning", "No episode ended in training, in 40 updates."
    )
    assert judge(RETURN.tag, [math.nan], {"update": [1]}).text == "No episode ended in training, in 1 update."
    assert verdict(RETURN, {}, {}) == Verdict("note", "No value was logged.")
