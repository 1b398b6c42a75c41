"""The loss and gradient in closed form against autograd, finite differences and hand-made cases."""

import copy
import dataclasses

import pytest
import torch

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.config import Config
from fabric_ppo.envs.spaces import EnvSpec, SpaceSpec
from fabric_ppo.fast.flat_weights import FlatWeights
from fabric_ppo.fast.fused_loss import FusedLoss, can_fuse
from fabric_ppo.fast.loss_module import PPOLoss, make_optimizer
from fabric_ppo.ppo.batch import Rows
from fabric_ppo.ppo.loss import MinibatchLoss, autograd_loss

BOX = SpaceSpec("box", (5,), "float32")
OBSERVATIONS = {
    "box": BOX,
    "pixels": SpaceSpec("box", (2, 3), "uint8"),
    "discrete": SpaceSpec("discrete", (), "int64", (4,), (2,)),
}
ACTIONS = {
    "2 choices": SpaceSpec("discrete", (), "int64", (2,), (0,)),
    "7 choices": SpaceSpec("discrete", (), "int64", (7,), (0,)),
    "scalar": SpaceSpec("box", (1,), "float32", low=(None,), high=(None,)),
    "matrix": SpaceSpec("box", (2, 3), "float32", low=(None,) * 6, high=(None,) * 6),
}
CONFIG = Config(clip_coef=0.2, vf_coef=0.7, ent_coef=0.03)


def make_agent(action, hidden_sizes=(6, 4), activation="tanh", observation=BOX, shared_trunk=False):
    """A float64 agent; the widths of policy and value are the same, the weights are not."""
    torch.manual_seed(3)
    architecture = Architecture(activation, hidden_sizes, shared_trunk=shared_trunk)
    agent = Agent(EnvSpec("Test-v0", observation, action), architecture).double()
    if agent.log_std is not None:
        agent.log_std.data = torch.linspace(-0.7, 0.4, agent.log_std.numel(), dtype=torch.float64)
    return agent


def make_rows(agent, count, spread=0.3):
    """Rows as if collected by an agent whose log-probabilities and values were off by about `spread`."""
    torch.manual_seed(5)
    space = agent.spec.observation
    if space.kind == "discrete":
        obs = torch.randint(space.start[0], space.start[0] + space.sizes[0], (count,))
    elif space.dtype == "uint8":
        obs = torch.randint(0, 256, (count, *space.shape), dtype=torch.uint8)
    else:
        obs = torch.randn(count, *space.shape)
    with torch.no_grad():
        noise = agent.distribution.noise(torch.rand(count, agent.distribution.noise_size, dtype=torch.float64))
        actions = agent.act(obs, noise)[0].to(agent.distribution.action_dtype)
        log_probs, values = agent.log_probs_and_values(obs, actions)
    off, moved, advantages, returns = torch.randn(4, count, dtype=torch.float64)
    weights = torch.rand(count, dtype=torch.float64) / max(count, 1)
    return Rows(obs, actions, log_probs + spread * off, values + spread * moved, advantages, returns, weights)


def compare(agent, rows, config):
    """Both ways through FlatWeights; the loss in closed form and the gradient of `flat`."""
    weights = FlatWeights(agent)
    flat_grads, losses = [], []
    for loss_of in (FusedLoss(agent, weights, config), lambda rows: autograd_loss(weights, rows, config)):
        weights.flat.grad = None
        losses.append(loss_of(rows))
        losses[-1].loss.backward()
        flat_grads.append(weights.flat.grad.clone())
    for name, fused, reference in zip(MinibatchLoss._fields, *losses, strict=True):
        torch.testing.assert_close(fused, reference, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: name + text)
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
    agent = make_agent(ACTIONS[action], hidden_sizes, activation, shared_trunk=shared_trunk)
    config = dataclasses.replace(CONFIG, clip_vloss=clip_vloss, ent_coef=ent_coef)
    rows = make_rows(agent, 64)
    loss, grad = compare(agent, rows, config)
    ratio = torch.exp(loss.log_probs - rows.log_probs)
    clipped = (rows.advantages * ratio) > rows.advantages * ratio.clamp(0.8, 1.2)
    assert 0 < clipped.sum() < 64  # both sides of the clip were seen
    assert grad.count_nonzero() > grad.numel() / 2


@pytest.mark.parametrize("most", [1, 16, 63, 64])
@pytest.mark.parametrize("action", ["7 choices", "matrix"])
@pytest.mark.parametrize("shared_trunk", [False, True])
def test_many_rows_are_taken_in_blocks(action, most, shared_trunk, monkeypatch):
    monkeypatch.setattr("fabric_ppo.fused._ROWS_AT_A_TIME", most)
    agent = make_agent(ACTIONS[action], shared_trunk=shared_trunk)
    compare(agent, make_rows(agent, 64), CONFIG)


@pytest.mark.parametrize("bounds", [(-0.5, None), (None, 0.2), (-0.5, 0.2), (-0.7, 0.4)], ids=str)
@pytest.mark.parametrize("ent_coef", [0.0, 0.03])
def test_a_bounded_deviation(bounds, ent_coef):
    """Its entries run from -0.7 to 0.4; at a bound a gradient passes, beyond it none does."""
    agent = make_agent(ACTIONS["matrix"])
    least, most = bounds
    agent.architecture = dataclasses.replace(agent.architecture, log_std_min=least, log_std_max=most)
    free = agent.log_std.detach().clone()
    beyond = (free < (-9 if least is None else least)) | (free > (9 if most is None else most))
    _, grad = compare(agent, make_rows(agent, 33), dataclasses.replace(CONFIG, ent_coef=ent_coef))
    assert ((FlatWeights(agent).views(grad)["log_std"] == 0) == beyond).all()
    assert beyond.any() == (bounds != (-0.7, 0.4))


def test_a_deviation_beyond_its_bound_comes_back():
    """Adam's first steps are as long as the learning rate, whatever the gradient: an entry may well overshoot."""
    agent = make_agent(ACTIONS["matrix"])
    agent.architecture = dataclasses.replace(agent.architecture, log_std_min=0.0)
    agent.log_std.data.fill_(-1e-3)
    config = dataclasses.replace(CONFIG, ent_coef=10.0)  # a wider one is better
    loss_fn, rows = PPOLoss(agent, config), make_rows(agent, 33)
    optimizer = make_optimizer(loss_fn, config)
    for _ in range(20):
        optimizer.zero_grad()
        loss_fn(rows).loss.backward()
        optimizer.step()
    assert (agent.log_std > 0).all()


@pytest.mark.parametrize("shared_trunk", [False, True])
@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("action", ["7 choices", "matrix"])
def test_any_observation(observation, action, shared_trunk):
    agent = make_agent(ACTIONS[action], observation=OBSERVATIONS[observation], shared_trunk=shared_trunk)
    compare(agent, make_rows(agent, 33), CONFIG)


@pytest.mark.parametrize("shared_trunk", [False, True])
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("clip_vloss", [False, True])
def test_no_rows(action, clip_vloss, shared_trunk):
    agent = make_agent(ACTIONS[action], shared_trunk=shared_trunk)
    loss, grad = compare(agent, make_rows(agent, 0), dataclasses.replace(CONFIG, clip_vloss=clip_vloss))
    assert loss.loss.item() == 0
    assert (grad == 0).all()


@pytest.mark.parametrize("action", ACTIONS)
def test_rows_without_weight(action):
    """Some rows weigh nothing: as if they were not there."""
    agent = make_agent(ACTIONS[action])
    rows = make_rows(agent, 24)
    kept = torch.arange(24) % 4 != 0
    _, masked = compare(agent, rows._replace(weights=rows.weights * kept), CONFIG)
    _, short = compare(copy.deepcopy(agent), Rows(*(column[kept] for column in rows[:-1])), CONFIG)
    torch.testing.assert_close(masked, short, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("action", ACTIONS)
def test_first_minibatch_has_its_whole_gradient(action):
    """Where the agent has not moved the ratio is one, both sides of the minimum are equal: policy gradient, REINFORCE.

    `sum_i -w_i A_i grad log pi(a_i)`, through autograd on the log-probabilities alone.
    """
    agent = make_agent(ACTIONS[action])
    rows = make_rows(agent, 32, spread=0.0)
    config = dataclasses.replace(CONFIG, vf_coef=0.0, ent_coef=0.0)
    log_probs = agent.log_probs_and_values(rows.obs, rows.actions)[0]
    surrogate = -(rows.weights * rows.advantages * log_probs).sum()
    gradients = torch.autograd.grad(surrogate, list(agent.parameters()), allow_unused=True)
    expected = [torch.zeros_like(p) if g is None else g for p, g in zip(agent.parameters(), gradients, strict=True)]
    _, grad = compare(agent, rows, config)
    torch.testing.assert_close(grad, torch.cat([each.flatten() for each in expected]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shared_trunk", [False, True])
@pytest.mark.parametrize("action", ["7 choices", "matrix"])
@pytest.mark.parametrize("clip_vloss", [False, True])
def test_gradient_is_the_slope(action, clip_vloss, shared_trunk):
    """Finite differences of the loss along random directions, without autograd."""
    agent = make_agent(ACTIONS[action], shared_trunk=shared_trunk)
    rows, weights = make_rows(agent, 40), FlatWeights(agent)
    config = dataclasses.replace(CONFIG, clip_vloss=clip_vloss)
    loss = FusedLoss(agent, weights, config)
    loss(rows).loss.backward()
    start, step = weights.flat.detach().clone(), 1e-6

    @torch.no_grad()
    def loss_at(flat):
        weights.flat.copy_(flat)
        return loss(rows).loss.item()

    for direction in torch.randn(6, start.numel(), dtype=torch.float64):
        expected = (loss_at(start + step * direction) - loss_at(start - step * direction)) / (2 * step)
        assert (weights.flat.grad @ direction).item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_a_scaled_loss_has_a_scaled_gradient():
    """As a mean over ranks, a gradient scaler or gradient accumulation does."""
    agent = make_agent(ACTIONS["matrix"])
    rows = make_rows(agent, 16)
    _, grad = compare(agent, rows, CONFIG)
    weights = FlatWeights(agent)
    loss_of = FusedLoss(agent, weights, CONFIG)
    (3.0 * loss_of(rows).loss).backward()
    torch.testing.assert_close(weights.flat.grad, 3.0 * grad, rtol=1e-14, atol=0)
    weights.flat.grad = None
    loss = 3.0 * loss_of(rows).loss
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(weights.flat.grad, 6.0 * grad, rtol=1e-14, atol=0)


def test_memory_of_the_gradient_is_never_handed_out():
    """What was computed stays although the next loss uses the same memory; a loss that came too late says so."""
    agent = make_agent(ACTIONS["matrix"])
    weights = FlatWeights(agent)
    rows = make_rows(agent, 16)
    other = rows._replace(advantages=-rows.advantages)
    loss_of = FusedLoss(agent, weights, CONFIG)
    loss_of(rows).loss.backward()
    kept, snapshot = weights.flat.grad, weights.flat.grad.clone()
    weights.flat.grad = None
    late = loss_of(rows)
    loss_of(other).loss.backward()
    assert torch.equal(kept, snapshot)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        late.loss.backward()


def test_only_the_loss_has_a_gradient():
    agent = make_agent(ACTIONS["7 choices"])
    loss, *now = FusedLoss(agent, FlatWeights(agent), CONFIG)(make_rows(agent, 8))
    assert loss.requires_grad
    assert not any(each.requires_grad for each in now)


@pytest.mark.parametrize("shared_trunk", [False, True])
def test_what_was_handed_out_stays(shared_trunk):
    """Minibatches of any size, one after the other, larger and smaller: each answer is its own memory."""
    agent = make_agent(ACTIONS["7 choices"], shared_trunk=shared_trunk)
    weights = FlatWeights(agent)
    loss_of, rows = FusedLoss(agent, weights, CONFIG), make_rows(agent, 40)
    answers = []
    for size in (9, 40, 8, 9, 0, 40, 1):
        part = Rows(*(column[:size] for column in rows))
        weights.flat.grad = None
        answer = loss_of(part)
        answer.loss.backward()
        answers.append((part, (*answer, weights.flat.grad)))
    for part, kept in answers:
        weights.flat.grad = None
        again = autograd_loss(weights, part, CONFIG)
        again.loss.backward()
        torch.testing.assert_close(kept, (*again, weights.flat.grad), rtol=1e-12, atol=1e-12)


def test_rows_stay_as_they_are():
    agent = make_agent(ACTIONS["matrix"])
    rows = make_rows(agent, 8)
    before = Rows(*(column.clone() for column in rows))
    FusedLoss(agent, FlatWeights(agent), dataclasses.replace(CONFIG, clip_vloss=True))(rows).loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(rows, before, strict=True))


def test_what_can_be_fused():
    choices = SpaceSpec("multi_discrete", (2,), "int64", (2, 3), (0, 0))
    bits = SpaceSpec("multi_binary", (2,), "int8")
    assert all(can_fuse(make_agent(action), "cpu") for action in ACTIONS.values())
    assert can_fuse(make_agent(ACTIONS["matrix"], shared_trunk=True), "cpu")
    normed = Agent(
        EnvSpec("Test-v0", BOX, ACTIONS["scalar"]), Architecture("tanh", (6,), shared_trunk=True, layer_norm=True)
    )
    assert not can_fuse(normed, "cpu")
    assert not any(can_fuse(make_agent(action), "cpu") for action in (choices, bits))
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_fuse(make_agent(ACTIONS["scalar"]), "cpu")
