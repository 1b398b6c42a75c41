"""GAE against sums from the definition (fixtures/vectors.json), and the two ways in which an episode ends."""

from __future__ import annotations

import pytest
import torch

from fabric_ppo.ppo.advantages import gae
from tests.fixtures.reference import VECTORS

CASES = VECTORS["gae"]


def tensors(case):
    names = ("rewards", "values", "next_values", "terminated", "truncated")
    return [torch.tensor(case[name], dtype=torch.bool if "ed" in name[-2:] else torch.float64) for name in names]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['rewards'])}x{len(case['rewards'][0])}")
def test_equals_the_definition(case):
    advantages, returns = gae(*tensors(case), case["gamma"], case["gae_lambda"])
    for got, name in ((advantages, "advantages"), (returns, "returns")):
        torch.testing.assert_close(got, torch.tensor(case[name], dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_leaves_its_inputs_alone():
    inputs = tensors(CASES[4])
    before = [tensor.clone() for tensor in inputs]
    gae(*inputs, 0.99, 0.95)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_keeps_float32():
    inputs = [tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors(CASES[4])]
    advantages, returns = gae(*inputs, 0.99, 0.95)
    assert advantages.dtype == returns.dtype == torch.float32
    torch.testing.assert_close(advantages, torch.tensor(CASES[4]["advantages"]), rtol=1e-5, atol=1e-5)


def three_steps(terminated, truncated, next_value):
    """Three steps of one environment; the flags and `next_value` are those of the middle one."""

    def column(middle, dtype):
        return torch.tensor([[0], [middle], [0]], dtype=dtype)

    zeros = torch.zeros(3, 1, dtype=torch.float64)
    advantages, _ = gae(
        torch.ones_like(zeros),
        zeros,
        column(next_value, torch.float64),
        column(terminated, torch.bool),
        column(truncated, torch.bool),
        gamma=0.5,
        gae_lambda=1.0,
    )
    return advantages.flatten().tolist()


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        (False, False, [1 + 0.5 * 5.5, 1 + 0.5 * 8 + 0.5 * 1, 1.0]),  # bootstrap, and the trace goes on
        (False, True, [1 + 0.5 * 5.0, 1 + 0.5 * 8, 1.0]),  # bootstrap, then cut
        (True, False, [1 + 0.5 * 1.0, 1.0, 1.0]),  # neither
        (True, True, [1 + 0.5 * 1.0, 1.0, 1.0]),  # terminated as well as truncated: there is nothing to come
    ],
)
def test_truncated_bootstraps_and_terminated_does_not(terminated, truncated, expected):
    assert three_steps(terminated, truncated, next_value=8.0) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("terminated", "truncated"), [(True, False), (False, True), (True, True)])
def test_nothing_of_the_next_episode_leaks_back(terminated, truncated):
    torch.manual_seed(0)
    rewards, values, next_values = torch.randn(3, 6, 2, dtype=torch.float64)
    flags = torch.zeros(2, 6, 2, dtype=torch.bool)
    flags[:, 2] = torch.tensor([terminated, truncated]).unsqueeze(-1)
    before, _ = gae(rewards, values, next_values, *flags, 0.99, 0.95)
    for tensor in (rewards, values, next_values):
        tensor[3:] += 100
    after, _ = gae(rewards, values, next_values, *flags, 0.99, 0.95)
    assert torch.equal(before[:3], after[:3])
    assert not torch.isclose(before[3:], after[3:]).any()
