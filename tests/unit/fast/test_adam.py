"""Adam in few kernels, against `torch.optim.Adam`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fabric_ppo.fast.adam import LeanAdam

SHAPES = pytest.mark.parametrize("shapes", [[(37,)], [(3, 4), (4,), ()]], ids=["flat", "several"])


def parameters(shapes, dtype=torch.float64):
    torch.manual_seed(2)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]


def give_gradients(*groups, length):
    """The same random gradient for each group of parameters, of the given norm."""
    grads = [torch.randn_like(each) for each in groups[0]]
    norm = torch.cat([each.flatten() for each in grads]).norm()
    for group in groups:
        for parameter, grad in zip(group, grads, strict=True):
            parameter.grad = grad * (length / norm)


def assert_equal(ours, plain, optimizer, reference, tolerance):
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(a.grad, b.grad, rtol=tolerance, atol=tolerance)
        for name, value in reference.state[b].items():
            got = optimizer.state[a][name]
            torch.testing.assert_close(got, value, rtol=tolerance, atol=tolerance, check_dtype=name != "step")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
@SHAPES
def test_equals_adam(shapes, eps, dtype, tolerance):
    """Over steps with small, usual and large gradients, and a learning rate that changes."""
    ours, plain = parameters(shapes, dtype), parameters(shapes, dtype)
    optimizer = LeanAdam(ours, lr=0.01, eps=eps)
    reference = torch.optim.Adam(plain, lr=0.01, eps=eps, foreach=False)
    for step, length in enumerate([0.1, 0.5, 3.0, 0.49, 1e-12, 1e6]):
        give_gradients(ours, plain, length=length)
        optimizer.param_groups[0]["lr"] = reference.param_groups[0]["lr"] = 0.01 / (1 + step)
        assert optimizer.step() is None
        reference.step()
        assert_equal(ours, plain, optimizer, reference, tolerance)


@pytest.mark.parametrize("reads_tensors", [False, True])
@SHAPES
def test_with_a_decay_equals_adamw(shapes, reads_tensors):
    """With other betas too; also where a recorded step reads its learning rate from a tensor."""
    ours, plain = parameters(shapes), parameters(shapes)
    optimizer = LeanAdam(ours, lr=0.01, eps=1e-5, betas=(0.8, 0.95), weight_decay=0.3)
    reference = torch.optim.AdamW(plain, lr=0.01, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.3, foreach=False)
    for step in range(4):
        give_gradients(ours, plain, length=0.5 + step)
        optimizer.param_groups[0]["lr"] = reference.param_groups[0]["lr"] = 0.1 / (1 + step)
        if reads_tensors:
            optimizer.write_rates()
        optimizer.step()
        reference.step()
        # the tensor of a rate has float32
        assert_equal(ours, plain, optimizer, reference, 1e-7 if reads_tensors else 1e-13)


@SHAPES
def test_goes_on_from_a_saved_state_with_the_same_bits(shapes):
    ours = parameters(shapes, torch.float32)
    optimizer = LeanAdam(ours, lr=0.01, eps=1e-5)
    for _ in range(3):
        give_gradients(ours, length=2.0)
        optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    assert all(type(value) is torch.Tensor for entry in state["state"].values() for value in entry.values())
    assert set(state["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    resumed = [nn.Parameter(each.detach().clone()) for each in ours]
    later = LeanAdam(resumed, lr=7.0, eps=1.0)
    give_gradients(resumed, length=1.0)
    later.step()  # what was there before goes
    with torch.no_grad():
        for a, b in zip(resumed, ours, strict=True):
            a.copy_(b)
    later.load_state_dict(state)
    for _ in range(3):
        give_gradients(ours, resumed, length=2.0)
        optimizer.step()
        later.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, resumed, strict=True))
    assert later.state_dict()["state"][0]["step"].item() == 6


def test_plain_adam_takes_its_state_and_gives_it_back():
    ours, plain = parameters([(5,)]), parameters([(5,)])
    optimizer = LeanAdam(ours, lr=0.01, eps=1e-5)
    give_gradients(ours, plain, length=2.0)
    optimizer.step()
    reference = torch.optim.Adam(plain)
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        plain[0].copy_(ours[0])
    give_gradients(ours, plain, length=3.0)
    optimizer.step()
    reference.step()
    optimizer.load_state_dict(copy.deepcopy(reference.state_dict()))
    give_gradients(ours, plain, length=1.0)
    optimizer.step()
    reference.step()
    torch.testing.assert_close(ours, plain, rtol=1e-13, atol=1e-13)


def test_zero_grad():
    (parameter,) = parameters([(3,)])
    optimizer = LeanAdam([parameter], lr=0.01, eps=1e-5)
    give_gradients([parameter], length=1.0)
    optimizer.zero_grad(set_to_none=False)
    assert not parameter.grad.any()
    optimizer.zero_grad()
    assert parameter.grad is None


def test_a_closure_computes_the_gradients():
    ours, plain = parameters([(5,)]), parameters([(5,)])
    optimizer = LeanAdam(ours, lr=0.01, eps=1e-5)
    reference = torch.optim.Adam(plain, lr=0.01, eps=1e-5)

    def closure_of(optimizer, parameter):
        def closure():
            optimizer.zero_grad()
            loss = parameter.square().sum()
            loss.backward()
            return loss

        return closure

    for _ in range(2):
        value = optimizer.step(closure_of(optimizer, ours[0]))
        torch.testing.assert_close(value, reference.step(closure_of(reference, plain[0])))
    torch.testing.assert_close(ours, plain, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_that_are_not_normal_become_zero(dtype):
    """As the moments of a unit's weights once it is never active: with them a step would take many times as long."""
    ours, plain = parameters([(37,)], dtype), parameters([(37,)], dtype)
    optimizer, reference = (
        torch_adam(each, lr=0.01, eps=1e-5) for torch_adam, each in ((LeanAdam, ours), (torch.optim.Adam, plain))
    )
    give_gradients(ours, plain, length=1.0)
    seen = False
    for _ in range(9000 if dtype == torch.float64 else 1200):
        optimizer.step()
        reference.step()
        ours[0].grad.zero_()
        plain[0].grad.zero_()
        seen = seen or is_denormal(reference.state[plain[0]]["exp_avg"])
        assert not is_denormal(optimizer.state[ours[0]]["exp_avg"])
    assert seen
    assert not optimizer.state[ours[0]]["exp_avg"].any()
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def is_denormal(values):
    """Whether some of `values` are so small that their type holds fewer digits of them."""
    return bool(((values != 0) & (values.abs() < torch.finfo(values.dtype).tiny)).any())
