"""Clipping in few kernels, against `clip_grad_norm_`."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fabric_ppo.fast.gradient_clip import GradientClip
from fabric_ppo.process.errors import ConfigError


class Several(nn.Module):
    """Parameters of some shapes, with a gradient of a given norm."""

    def __init__(self, shapes, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(2)
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes])

    def give_gradient(self, length, seed=0):
        torch.manual_seed(seed)
        grads = [torch.randn_like(each) for each in self.weights]
        norm = torch.cat([each.flatten() for each in grads]).norm()
        for parameter, grad in zip(self.weights, grads, strict=True):
            parameter.grad = grad * (length / norm)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
@pytest.mark.parametrize("shapes", [[(37,)], [(3, 4), (4,), ()]], ids=["flat", "several"])
def test_equals_clip_grad_norm(shapes, dtype, tolerance):
    """Below, at and above the limit; it returns the norm from before."""
    ours, plain = Several(shapes, dtype), Several(shapes, dtype)
    clip = GradientClip(ours, 0.5)
    for seed, length in enumerate([0.1, 0.5, 3.0, 0.49, 1e-12, 1e6]):
        ours.give_gradient(length, seed)
        plain.give_gradient(length, seed)
        norm = clip()
        expected = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        assert norm.item() == pytest.approx(length, rel=100 * tolerance)
        torch.testing.assert_close(norm, expected, rtol=tolerance, atol=0)
        for a, b in zip(ours.weights, plain.weights, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=tolerance, atol=0)


def test_it_follows_a_module_that_is_moved_to_another_type():
    module = Several([(3,)])
    clip = GradientClip(module, 0.5)
    for dtype in (torch.float32, torch.float64, torch.float32):
        module.to(dtype).give_gradient(2.0)
        assert clip().dtype == dtype
        assert module.weights[0].grad.dtype == dtype
        assert module.weights[0].grad.norm().item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_shows(value):
    """In the norm and in the gradient, as with PyTorch's own: `run.guard.Guard` looks at both."""
    module = Several([(3,)])
    module.weights[0].grad = torch.tensor([1.0, value, 1.0], dtype=torch.float64)
    assert not math.isfinite(GradientClip(module, 0.5)().item())
    assert not torch.isfinite(module.weights[0].grad).all()


def test_a_loss_that_does_not_reach_the_weights_is_refused():
    module = Several([(3,)])
    torch.ones((), requires_grad=True).backward()
    with pytest.raises(ConfigError, match="no gradient"):
        GradientClip(module, 0.5)()
