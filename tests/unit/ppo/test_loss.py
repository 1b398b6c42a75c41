"""The PPO loss against fixtures/vectors.json, and the sum over ranks that its row weights give."""

from __future__ import annotations

import pytest
import torch

from fabric_ppo.agents.agent import Evaluation
from fabric_ppo.agents.distributions import Categorical
from fabric_ppo.ppo.batch import Rows
from fabric_ppo.ppo.loss import Coefficients, ppo_loss
from tests.fixtures.reference import VECTORS

CASES = VECTORS["loss"]


LOGGED = ("loss", "policy_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction")
HYPERPARAMETERS = ("clip_coef", "vf_coef", "ent_coef", "clip_vloss")
NOT_USED = torch.zeros(0)
"""Observations, which the loss does not look at."""


def columns(case):
    """The case's rows: logits and new values (with gradients), and the stored columns."""
    logits, values = (
        torch.tensor(case[name], dtype=torch.float64, requires_grad=True) for name in ("logits", "new_values")
    )
    stored = [torch.tensor(case[name], dtype=torch.float64) for name in ("old_log_probs", "values")]
    targets = [torch.tensor(case[name], dtype=torch.float64) for name in ("advantages", "returns")]
    return logits, values, torch.tensor(case["actions"]), *stored, *targets


def loss_of(case, rows, weights):
    logits, values, actions, old_log_probs, old_values, advantages, returns = rows
    log_probs, entropy = Categorical(logits.shape[-1]).log_prob_and_entropy(logits, actions)
    stored = Rows(NOT_USED, actions, old_log_probs, old_values, advantages, returns, weights)
    coefs = Coefficients(**{name: case[name] for name in HYPERPARAMETERS})
    return ppo_loss(stored, Evaluation(log_probs, entropy, values), coefs)


def gradients(loss, rows):
    return torch.autograd.grad(loss, rows[:2])


def equal_weights(count):
    return torch.full((count,), 1 / count, dtype=torch.float64)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['actions'])}rows")
def test_equals_the_definition(case):
    losses = loss_of(case, columns(case), equal_weights(len(case["actions"])))
    expected = case | {"entropy_loss": -case["entropy"]}
    for name in LOGGED:
        assert getattr(losses, name).item() == pytest.approx(expected[name], rel=1e-12, abs=1e-12), name


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['actions'])}rows")
def test_gradient_is_the_slope(case):
    rows = columns(case)
    weights = equal_weights(len(case["actions"]))
    slopes = gradients(loss_of(case, rows, weights).loss, rows)
    torch.manual_seed(0)
    step = 1e-6
    for at, slope in enumerate(slopes):
        direction = torch.randn_like(slope)
        up, down = (
            loss_of(case, [row + sign * step * direction if k == at else row for k, row in enumerate(rows)], weights)
            for sign in (1, -1)
        )
        expected = ((up.loss - down.loss) / (2 * step)).item()
        assert (slope * direction).sum().item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_only_the_loss_has_a_gradient():
    case = CASES[1]
    loss, *logged = loss_of(case, columns(case), equal_weights(7))
    assert loss.requires_grad
    assert not any(each.requires_grad for each in logged)


@pytest.mark.parametrize("case", CASES[1:], ids=lambda case: f"{len(case['actions'])}rows")
@pytest.mark.parametrize("cuts", [(3,), (1, 2, 6), (0, 5), (4, 4, 7)])
def test_parts_average_to_the_whole(case, cuts):
    """Ranks weigh the rows of their part by (ranks / rows of the chunk); DDP then takes the mean over ranks."""
    rows = columns(case)
    total = len(case["actions"])
    whole = loss_of(case, rows, equal_weights(total))
    bounds = (0, *cuts, total)
    parts = [slice(bounds[k], bounds[k + 1]) for k in range(len(bounds) - 1)]
    weights = equal_weights(total) * len(parts)
    each = [loss_of(case, [row[part] for row in rows], weights[part]) for part in parts]
    for name in LOGGED:
        mean = torch.stack([getattr(losses, name) for losses in each]).mean()
        torch.testing.assert_close(mean, getattr(whole, name), rtol=1e-12, atol=1e-12)
    averaged = gradients(torch.stack([losses.loss for losses in each]).mean(), rows)
    for got, want in zip(averaged, gradients(whole.loss, rows), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES[1:], ids=lambda case: f"{len(case['actions'])}rows")
def test_rows_without_weight_do_not_count(case):
    rows = columns(case)
    kept = torch.arange(len(case["actions"])) % 3 != 1
    weights = kept.double() / kept.sum()
    masked = loss_of(case, rows, weights)
    short = loss_of(case, [row[kept] for row in rows], equal_weights(int(kept.sum())))
    for name in LOGGED:
        torch.testing.assert_close(getattr(masked, name), getattr(short, name), rtol=1e-12, atol=1e-12)
    for got, want in zip(gradients(masked.loss, rows), gradients(short.loss, rows), strict=True):
        assert (got[~kept] == 0).all()
        torch.testing.assert_close(got[kept], want[kept], rtol=1e-12, atol=1e-12)
        assert (got[kept] != 0).any()


@pytest.mark.parametrize("clip_vloss", [False, True])
def test_a_part_without_rows_is_zero_with_zero_gradients(clip_vloss):
    case = {**CASES[2], "clip_vloss": clip_vloss}
    rows = columns(case)
    losses = loss_of(case, [row[:0] for row in rows], torch.zeros(0, dtype=torch.float64))
    assert all(each.item() == 0 for each in losses)
    assert all((gradient == 0).all() for gradient in gradients(losses.loss, rows))


def test_the_clipped_objective_has_no_gradient_beyond_the_range():
    """No gradient where the ratio has left the range in the direction that the advantage pulls; full beyond it."""
    log_ratio = torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0], dtype=torch.float64)
    zeros = torch.zeros(4, dtype=torch.float64)
    rows = Rows(NOT_USED, NOT_USED, zeros, zeros, advantages, zeros, torch.ones(4, dtype=torch.float64))
    losses = ppo_loss(rows, Evaluation(log_ratio, zeros, zeros), Coefficients(0.2, 1.0, 1.0, False))
    losses.loss.backward()
    ratio = log_ratio.detach().exp()
    expected = torch.tensor([0.0, 2.0 * ratio[1], -2.0 * ratio[2], 0.0], dtype=torch.float64)
    torch.testing.assert_close(log_ratio.grad, expected, rtol=1e-12, atol=0)
    assert losses.clip_fraction.item() == 4
