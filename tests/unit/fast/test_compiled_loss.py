"""The compiled loss and gradient against autograd, finite differences and hand-made cases."""

from __future__ import annotations

import copy
import dataclasses
import functools

import pytest
import torch

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.envs.spaces import EnvSpec, SpaceSpec
from fabric_ppo.fast import compiled_agent
from fabric_ppo.fast.compiled_loss import CompiledLoss, has_compiled_loss, mixes_precisions
from fabric_ppo.fast.flat_weights import FlatWeights
from fabric_ppo.fast.loss_module import PPOLoss
from fabric_ppo.ppo.batch import Rows
from fabric_ppo.ppo.loss import Coefficients, MinibatchLoss, minibatch_loss
from tests.fixtures.agents import build_acting_agent, build_agent, masked_agent
from tests.fixtures.rows import make_rows
from tests.fixtures.spaces import BOX, OBSERVATIONS
from tests.fixtures.updates import CONFIG, make_step

ACTIONS = {
    "2 choices": SpaceSpec("discrete", (), "int64", (2,), (0,)),
    "7 choices": SpaceSpec("discrete", (), "int64", (7,), (0,)),
    "scalar": SpaceSpec("box", (1,), "float32", low=(None,), high=(None,)),
    "matrix": SpaceSpec("box", (2, 3), "float32", low=(None,) * 6, high=(None,) * 6),
}


COEFS = Coefficients(clip_coef=0.2, vf_coef=0.7, ent_coef=0.03, clip_vloss=False)


uneven_rows = functools.partial(make_rows, spread=0.3, uneven=True)


def compare(agent, rows, coefs):
    """Both ways through FlatWeights; the compiled loss and the gradient of `flat`."""
    weights = FlatWeights(agent)
    flat_grads, losses = [], []
    for loss_of in (CompiledLoss(agent, weights), functools.partial(minibatch_loss, weights)):
        weights.flat.grad = None
        losses.append(loss_of(rows, coefs))
        losses[-1].loss.backward()
        flat_grads.append(weights.flat.grad.clone())
    for name, got, reference in zip(MinibatchLoss._fields, *losses, strict=True):
        close = torch.testing.assert_close
        close(got, reference.to(got.dtype), rtol=1e-12, atol=1e-12, msg=lambda text, name=name: name + text)
    torch.testing.assert_close(*flat_grads, rtol=1e-12, atol=1e-12)
    return losses[0], flat_grads[0]


@pytest.mark.parametrize("ent_coef", [0.0, 0.03])
@pytest.mark.parametrize("clip_vloss", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(
    ("hidden_sizes", "shared_trunk"),
    [((), False), ((8,), False), ((6, 4), False), ((5, 3, 4), False), ((8,), True), ((6, 4), True), ((5, 3, 4), True)],
    ids=str,
)
@pytest.mark.parametrize("action", ACTIONS)
def test_equals_autograd(action, hidden_sizes, shared_trunk, activation, clip_vloss, ent_coef):
    agent = build_agent(ACTIONS[action], hidden_sizes, activation, shared_trunk=shared_trunk)
    coefs = COEFS._replace(clip_vloss=clip_vloss, ent_coef=ent_coef)
    rows = uneven_rows(agent, 64)
    _, grad = compare(agent, rows, coefs)
    ratio = torch.exp(agent(rows.obs, rows.actions).log_probs - rows.log_probs)
    clipped = (rows.advantages * ratio) > rows.advantages * ratio.clamp(0.8, 1.2)
    assert 0 < clipped.sum() < 64  # both sides of the clip were seen
    assert grad.count_nonzero() > grad.numel() / 2


@pytest.mark.parametrize("most", [1, 16, 63, 64])
@pytest.mark.parametrize("action", ["7 choices", "matrix"])
@pytest.mark.parametrize("shared_trunk", [False, True])
def test_many_rows_are_taken_in_blocks(action, most, shared_trunk, monkeypatch):
    monkeypatch.setattr(compiled_agent, "BLOCK_ROWS", most)
    agent = build_agent(ACTIONS[action], shared_trunk=shared_trunk)
    compare(agent, uneven_rows(agent, 64), COEFS)


@pytest.mark.parametrize("bounds", [(-0.5, None), (None, 0.2), (-0.5, 0.2), (-0.7, 0.4)], ids=str)
@pytest.mark.parametrize("ent_coef", [0.0, 0.03])
def test_a_bounded_deviation(bounds, ent_coef):
    """Its entries run from -0.7 to 0.4; at a bound a gradient passes, beyond it none does."""
    agent = build_agent(ACTIONS["matrix"])
    least, most = bounds
    agent.architecture = dataclasses.replace(agent.architecture, log_std_min=least, log_std_max=most)
    free = agent.log_std.detach().clone()
    beyond = (free < (-9 if least is None else least)) | (free > (9 if most is None else most))
    _, grad = compare(agent, uneven_rows(agent, 33), COEFS._replace(ent_coef=ent_coef))
    assert ((FlatWeights(agent).views(grad)["log_std"] == 0) == beyond).all()
    assert beyond.any() == (bounds != (-0.7, 0.4))


def test_a_deviation_beyond_its_bound_comes_back():
    """Adam's first steps are as long as the learning rate, whatever the gradient: an entry may well overshoot."""
    agent = build_agent(ACTIONS["matrix"])
    agent.architecture = dataclasses.replace(agent.architecture, log_std_min=0.0)
    agent.log_std.data.fill_(-1e-3)
    config = dataclasses.replace(CONFIG, learning_rate=1e-3)
    loss_fn, rows = PPOLoss(agent, config), uneven_rows(agent, 33)
    step = make_step(agent, loss_fn, config)
    for _ in range(20):
        step(loss_fn(rows, COEFS._replace(ent_coef=10.0)).loss)  # a wider one is better
    assert (agent.log_std > 0).all()


@pytest.mark.parametrize("shared_trunk", [False, True])
@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("action", ["7 choices", "matrix"])
def test_any_observation(observation, action, shared_trunk):
    agent = build_agent(ACTIONS[action], observation=OBSERVATIONS[observation], shared_trunk=shared_trunk)
    compare(agent, uneven_rows(agent, 33), COEFS)


@pytest.mark.parametrize("shared_trunk", [False, True])
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("clip_vloss", [False, True])
def test_no_rows(action, clip_vloss, shared_trunk):
    agent = build_agent(ACTIONS[action], shared_trunk=shared_trunk)
    loss, grad = compare(agent, uneven_rows(agent, 0), COEFS._replace(clip_vloss=clip_vloss))
    assert loss.loss.item() == 0
    assert (grad == 0).all()


@pytest.mark.parametrize("action", ACTIONS)
def test_rows_without_weight(action):
    """Some rows weigh nothing: as if they were not there."""
    agent = build_agent(ACTIONS[action])
    rows = uneven_rows(agent, 24)
    kept = torch.arange(24) % 4 != 0
    _, masked = compare(agent, rows._replace(weights=rows.weights * kept), COEFS)
    _, short = compare(copy.deepcopy(agent), Rows(*(column[kept] for column in rows[:-1])), COEFS)
    torch.testing.assert_close(masked, short, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("action", ACTIONS)
def test_first_minibatch_has_its_whole_gradient(action):
    """Where the agent has not moved the ratio is one, both sides of the minimum are equal: policy gradient, REINFORCE.

    `sum_i -w_i A_i grad log pi(a_i)`, through autograd on the log-probabilities alone.
    """
    agent = build_agent(ACTIONS[action])
    rows = uneven_rows(agent, 32, spread=0.0)
    coefs = COEFS._replace(vf_coef=0.0, ent_coef=0.0)
    log_probs = agent.log_probs_and_values(rows.obs, rows.actions)[0]
    surrogate = -(rows.weights * rows.advantages * log_probs).sum()
    gradients = torch.autograd.grad(surrogate, list(agent.parameters()), allow_unused=True)
    expected = [torch.zeros_like(p) if g is None else g for p, g in zip(agent.parameters(), gradients, strict=True)]
    _, grad = compare(agent, rows, coefs)
    torch.testing.assert_close(grad, torch.cat([each.flatten() for each in expected]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shared_trunk", [False, True])
@pytest.mark.parametrize("action", ["7 choices", "matrix"])
@pytest.mark.parametrize("clip_vloss", [False, True])
def test_gradient_is_the_slope(action, clip_vloss, shared_trunk):
    """Finite differences of the loss along random directions, without autograd."""
    agent = build_agent(ACTIONS[action], shared_trunk=shared_trunk)
    rows, weights = uneven_rows(agent, 40), FlatWeights(agent)
    coefs = COEFS._replace(clip_vloss=clip_vloss)
    loss = CompiledLoss(agent, weights)
    loss(rows, coefs).loss.backward()
    start, step = weights.flat.detach().clone(), 1e-6

    @torch.no_grad()
    def loss_at(flat):
        weights.flat.copy_(flat)
        return loss(rows, coefs).loss.item()

    for direction in torch.randn(6, start.numel(), dtype=torch.float64):
        expected = (loss_at(start + step * direction) - loss_at(start - step * direction)) / (2 * step)
        assert (weights.flat.grad @ direction).item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_a_scaled_loss_has_a_scaled_gradient():
    """As a mean over ranks, a gradient scaler or gradient accumulation does."""
    agent = build_agent(ACTIONS["matrix"])
    rows = uneven_rows(agent, 16)
    _, grad = compare(agent, rows, COEFS)
    weights = FlatWeights(agent)
    loss_of = CompiledLoss(agent, weights)
    (3.0 * loss_of(rows, COEFS).loss).backward()
    torch.testing.assert_close(weights.flat.grad, 3.0 * grad, rtol=1e-14, atol=0)
    weights.flat.grad = None
    loss = 3.0 * loss_of(rows, COEFS).loss
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(weights.flat.grad, 6.0 * grad, rtol=1e-14, atol=0)


def test_a_gradient_keeps_its_memory():
    """It stays although there are other losses, whose order does not matter; a second backward pass is an error."""
    agent = build_agent(ACTIONS["matrix"])
    weights = FlatWeights(agent)
    rows = uneven_rows(agent, 16)
    other = rows._replace(advantages=-rows.advantages)
    loss_of = CompiledLoss(agent, weights)
    loss_of(rows, COEFS).loss.backward()
    kept, snapshot = weights.flat.grad, weights.flat.grad.clone()
    weights.flat.grad = None
    late = loss_of(rows, COEFS)
    loss_of(other, COEFS).loss.backward()
    assert torch.equal(kept, snapshot)
    weights.flat.grad = None
    late.loss.backward()
    assert torch.equal(weights.flat.grad, snapshot)
    weights.flat.grad.mul_(2)  # as clipping does, in place
    with pytest.raises(RuntimeError, match="a second time"):
        late.loss.backward()


@pytest.mark.parametrize("blocks", [64, 5])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("observed", ["float32", "float64"])
def test_observations_are_converted_and_normalised(observed, dtype, normalize, blocks, monkeypatch):
    """Some of them lie beyond the bound to which normalised ones are clipped, and statistics move on."""
    monkeypatch.setattr(compiled_agent, "BLOCK_ROWS", blocks)
    observation = SpaceSpec("box", (5,), observed)
    agent = build_acting_agent(ACTIONS["matrix"], observation, normalize_observations=normalize).to(torch.float64)
    rows, weights = uneven_rows(agent, 33), FlatWeights(agent.to(dtype))
    if normalize:  # `.to` has converted the statistics, too
        agent.obs_moments.to(torch.float64)
    rows = Rows(*(each.to(dtype) if each.dtype == torch.float64 else each for each in rows[:-1]))
    rows = rows._replace(obs=(100 * torch.randn(33, 5, dtype=torch.float64)).to(getattr(torch, observed)))
    fast, tolerance = CompiledLoss(agent, weights), {torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    assert fast._compiled.obs_dtype == getattr(torch, observed)
    for _ in range(2):
        for got, want in zip(fast(rows, COEFS), minibatch_loss(weights, rows, COEFS), strict=True):
            torch.testing.assert_close(got, want.to(got.dtype), rtol=tolerance, atol=tolerance)
        if normalize:
            inputs = agent.inputs(rows.obs)
            assert (inputs.abs() == 10).any() and (inputs.abs() < 9).any()  # noqa: PT018
            agent.update_statistics(agent.obs_moments.sums(10 * torch.randn(100, 5)))


@pytest.mark.parametrize("action", ["7 choices", "matrix"])
def test_columns_of_other_types_and_strides_are_converted(action):
    """As an edit of the batch may leave them."""
    agent = build_agent(ACTIONS[action], dtype=torch.float32)
    weights, rows = FlatWeights(agent), uneven_rows(agent, 12)
    loss_of = CompiledLoss(agent, weights)
    usual = Rows(*(each.float() if each.dtype == torch.float64 else each for each in rows[:-1]))
    expected = loss_of(usual, COEFS)
    odd = usual._replace(
        advantages=usual.advantages.double(),
        returns=torch.stack([usual.returns, usual.returns], -1)[:, 0],
        actions=usual.actions.int() if action == "7 choices" else usual.actions.double(),
        weights=usual.weights.unsqueeze(-1),
    )
    for a, b in zip(loss_of(odd, COEFS._replace(ent_coef=torch.tensor(COEFS.ent_coef))), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("column", Rows._fields[:-1])
def test_columns_of_other_lengths_are_refused(column):
    agent = build_agent(ACTIONS["matrix"])
    rows = uneven_rows(agent, 12)
    with pytest.raises(ValueError, match="different lengths"):
        CompiledLoss(agent, FlatWeights(agent))(rows._replace(**{column: getattr(rows, column)[:7]}), COEFS)


@pytest.mark.parametrize("wrong", [-1, 7, 2**40])
def test_an_action_that_there_is_not_gives_no_finite_loss(wrong):
    agent = build_agent(ACTIONS["7 choices"])
    rows = uneven_rows(agent, 12)
    rows.actions[5] = wrong
    assert CompiledLoss(agent, FlatWeights(agent))(rows, COEFS).loss.isnan()


def test_a_penalty_may_be_added():
    """Then the loss is a part of autograd's graph as any other."""
    agent = build_agent(ACTIONS["matrix"])
    rows, weights = uneven_rows(agent, 16), FlatWeights(agent)
    grads = []
    for loss_of in (CompiledLoss(agent, weights), functools.partial(minibatch_loss, weights)):
        weights.flat.grad = None
        (loss_of(rows, COEFS).loss + 0.1 * weights.flat.square().sum()).backward()
        grads.append(weights.flat.grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_only_the_loss_has_a_gradient():
    agent = build_agent(ACTIONS["7 choices"])
    loss, *others = CompiledLoss(agent, FlatWeights(agent))(uneven_rows(agent, 8), COEFS)
    assert loss.requires_grad
    assert not any(each.requires_grad for each in others)


@pytest.mark.parametrize("shared_trunk", [False, True])
def test_results_keep_their_memory(shared_trunk):
    """Minibatches of any size, one after the other, larger and smaller: each answer is its own memory."""
    agent = build_agent(ACTIONS["7 choices"], shared_trunk=shared_trunk)
    weights = FlatWeights(agent)
    loss_of, rows = CompiledLoss(agent, weights), uneven_rows(agent, 40)
    answers = []
    for size in (9, 40, 8, 9, 0, 40, 1):
        part = Rows(*(column[:size] for column in rows))
        weights.flat.grad = None
        answer = loss_of(part, COEFS)
        answer.loss.backward()
        answers.append((part, (*answer, weights.flat.grad)))
    for part, kept in answers:
        weights.flat.grad = None
        again = minibatch_loss(weights, part, COEFS)
        again.loss.backward()
        torch.testing.assert_close(kept, (*again, weights.flat.grad), rtol=1e-12, atol=1e-12)


def test_rows_are_left_unchanged():
    agent = build_agent(ACTIONS["matrix"])
    rows = uneven_rows(agent, 8)
    before = Rows(*(column.clone() for column in rows))
    CompiledLoss(agent, FlatWeights(agent))(rows, COEFS._replace(clip_vloss=True)).loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(rows, before, strict=True))


def test_which_agents_have_a_compiled_loss():
    choices = SpaceSpec("multi_discrete", (2,), "int64", (2, 3), (0, 0))
    bits = SpaceSpec("multi_binary", (2,), "int8")
    assert all(has_compiled_loss(build_agent(action)) for action in ACTIONS.values())
    assert has_compiled_loss(build_agent(ACTIONS["matrix"], shared_trunk=True))
    normed = Agent(
        EnvSpec("Test-v0", BOX, ACTIONS["scalar"]), Architecture("tanh", (6,), shared_trunk=True, layer_norm=True)
    )
    assert not has_compiled_loss(normed)
    assert not any(has_compiled_loss(build_agent(action)) for action in (choices, bits))
    assert not has_compiled_loss(build_agent(ACTIONS["matrix"], state_dependent_std=True))
    assert not has_compiled_loss(masked_agent()[1])


def test_with_autocast_autograd_is_used():
    """Only its operations are cast: the loss is the plain one, to the last bit, and not that in 32 bits."""
    agent = build_agent(ACTIONS["scalar"], dtype=torch.float32)
    rows = uneven_rows(agent, 16)
    rows = Rows(*(each.float() if each.dtype == torch.float64 else each for each in rows[:-1]))
    loss_fn = PPOLoss(agent, CONFIG)
    assert not mixes_precisions("cpu")
    in_32_bits = loss_fn(rows, COEFS).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert mixes_precisions("cpu")
        got, want = loss_fn(rows, COEFS), minibatch_loss(loss_fn.weights, rows, COEFS)
    assert torch.equal(got.loss, want.loss)
    assert not torch.equal(got.loss, in_32_bits)
