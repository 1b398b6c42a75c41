"""H8: the plain path and every fast path give the same loss and gradient to rounding, and the same actions.

What is edited in the plain path takes effect: the fast one makes way for it.
"""

from __future__ import annotations

import copy
import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn

from fabric_ppo.agents.agent import Agent, Evaluation
from fabric_ppo.agents.distributions import Categorical, DiagonalGaussian
from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.mlp import MLP
from fabric_ppo.agents.policy import load_agent
from fabric_ppo.api import train
from fabric_ppo.config import Config, TorchConfig
from fabric_ppo.fast.compiled_actor import ActorChoice, CompiledActor, has_compiled_actor
from fabric_ppo.fast.compiled_loss import CompiledLoss, has_compiled_loss
from fabric_ppo.fast.loss_module import PPOLoss
from fabric_ppo.ppo import loss as loss_file
from fabric_ppo.ppo.loss import Coefficients, minibatch_loss, ppo_loss
from fabric_ppo.rollouts.actor import Actor
from tests.fixtures.agents import build_acting_agent, build_agent
from tests.fixtures.configs import NETWORKS
from tests.fixtures.rows import make_rows
from tests.fixtures.spaces import ACTIONS, BOX, BOX_SPEC, CHOICE_SPEC, OBSERVATIONS, observe
from tests.fixtures.updates import CONFIG, coefs_of

each_action = pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
each_spec = pytest.mark.parametrize("spec", [BOX_SPEC, CHOICE_SPEC], ids=["box", "choice"])
COEFS = Coefficients(clip_coef=0.2, vf_coef=0.7, ent_coef=0.03, clip_vloss=False)


@each_action
def test_loss_module_equals_autograd_for_every_distribution(action):
    agent = build_agent(action)
    free = copy.deepcopy(agent)
    rows = make_rows(agent, 16)
    rows = rows._replace(log_probs=rows.log_probs + 0.3 * torch.randn(16, dtype=torch.float64))
    module, coefs = PPOLoss(agent, CONFIG), coefs_of(CONFIG)
    assert [name for name, _ in module.named_parameters()] == ["weights.flat"]
    got, want = module(rows, coefs), minibatch_loss(free, rows, coefs)
    torch.testing.assert_close(got[:4], want[:4], rtol=1e-12, atol=1e-12)
    got.loss.backward()
    want.loss.backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in free.parameters()])
    torch.testing.assert_close(module.weights.flat.grad, expected, rtol=1e-12, atol=1e-12)


@each_spec
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_actors_draw_what_the_agent_would(spec, options):
    """A rollout's actions and parameters are those of `act` and `policy_params`."""
    agent = make_agent(spec, Config(**options))
    noise = torch.randn(3, 8, agent.distribution.noise_size)
    with torch.no_grad():
        for make_actor in (ActorChoice(agent), lambda agent, noise, obs: Actor(agent, noise)):
            actor = make_actor(agent, noise, observe(BOX, 8, seed=0))
            for t in range(3):
                obs = observe(BOX, 8, seed=0) + t
                np.testing.assert_allclose(actor.act(obs.numpy()), agent.act(obs, noise[t])[0], rtol=1e-5, atol=1e-6)
            expected = torch.stack([agent.policy_params(agent.features(observe(BOX, 8, seed=0) + t)) for t in range(3)])
            torch.testing.assert_close(actor.params(), expected)


def combinations(actions):
    """Every kind of agent that has a fast form: spaces, networks, activations, observations normalised or not."""
    kinds = itertools.product(actions, OBSERVATIONS, (False, True), ("relu", "tanh"), (False, True))
    return [kind for kind in kinds if not (kind[1] == "choice" and kind[4])]  # a choice is not normalised


def random_double(action, observation, shared_trunk, activation, normalize):
    """A random agent of that kind in float64."""
    options = {"shared_trunk": shared_trunk, "activation": activation, "normalize_observations": normalize}
    return build_acting_agent(ACTIONS[action], OBSERVATIONS[observation], **options).double()


@pytest.mark.parametrize("kind", combinations(["discrete", "box"]), ids=lambda kind: "-".join(map(str, kind)))
def test_the_compiled_loss_of_every_kind_of_agent_is_the_plain_one(kind, capsys):
    """Loss, evaluation and gradient; on the first minibatch and once rows have left the clipping range."""
    agent = random_double(*kind)
    free = copy.deepcopy(agent)
    assert has_compiled_loss(agent)
    module = PPOLoss(agent, CONFIG)
    for spread in (0.0, 0.3):
        rows = make_rows(free, 48, spread, uneven=True)
        for coefs in (COEFS, COEFS._replace(clip_vloss=True, ent_coef=0.0)):
            want = minibatch_loss(free, rows, coefs)
            expected = torch.autograd.grad(want.loss, list(free.parameters()), allow_unused=True)
            pairs = zip(free.parameters(), expected, strict=True)
            expected = torch.cat([(torch.zeros_like(p) if grad is None else grad).flatten() for p, grad in pairs])
            assert expected.count_nonzero() > expected.numel() / 3
            for loss_of in (module, CompiledLoss(agent, module.weights)):
                got = loss_of(rows, coefs)
                torch.testing.assert_close(got[:4], want[:4], rtol=1e-10, atol=1e-10)
                (grad,) = torch.autograd.grad(got.loss, module.weights.flat)
                torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-10)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", combinations(ACTIONS), ids=lambda kind: "-".join(map(str, kind)))
@torch.no_grad()
def test_the_compiled_actor_of_every_kind_of_agent_acts_as_the_plain_one(kind, capsys):
    agent = random_double(*kind)
    assert has_compiled_actor(agent)
    noise = agent.distribution.noise(torch.rand(4, 11, agent.distribution.noise_size, dtype=torch.float64))
    seen = [observe(agent.spec.observation, 11, seed).numpy() for seed in range(4)]
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    plain, fast = Actor(agent, noise), ActorChoice(agent)(agent, noise, torch.from_numpy(seen[0]))
    assert type(fast) is CompiledActor
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
    for obs in seen:
        got, want = fast.act(obs), plain.act(obs)
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fast.params(), plain.params(), rtol=1e-10, atol=1e-10)
    assert capsys.readouterr().err == ""


def edit_loss(monkeypatch, edited):
    """As if ppo/loss.py said so."""
    monkeypatch.setattr(loss_file, "ppo_loss", edited)


@pytest.mark.parametrize("is_edited", [False, True], ids=["as it is", "edited"])
def test_a_run_trains_with_the_loss_as_it_is_written(tmp_path, monkeypatch, capsys, is_edited):
    """A loss times zero moves no weight by one bit; without the edit every weight moves."""
    if is_edited:

        def nothing(rows, new, coefs):
            losses = ppo_loss(rows, new, coefs)
            return losses._replace(loss=0 * losses.loss)

        edit_loss(monkeypatch, nothing)
    config = TorchConfig(total_timesteps=3 * 256, test_episodes=1, num_threads=1, run_dir=str(tmp_path / "run"))
    agent = load_agent(train(config))._agent
    begun = dict(make_agent(agent.spec, config).named_parameters())
    is_same = [torch.equal(parameter, begun[name]) for name, parameter in agent.named_parameters()]
    assert is_same == [is_edited] * len(begun)
    lines = [line for line in capsys.readouterr().err.splitlines() if "ppo/loss.py" in line]
    assert len(lines) == int(is_edited)


def clipped(rows, new, coefs, most):
    """A surrogate whose ratio is clipped to 1 - c .. `most`."""
    ratio = (new.log_probs - rows.log_probs).exp()
    return torch.min(rows.advantages * ratio, rows.advantages * ratio.clamp(1 - coefs.clip_coef, most))


def with_terms(rows, new, coefs, surrogate, value_losses):
    """The loss from each row's surrogate and value loss."""
    loss = rows.weights @ (coefs.vf_coef * value_losses - surrogate - coefs.ent_coef * new.entropy)
    return ppo_loss(rows, new, coefs)._replace(loss=loss)


def wider_clip(rows, new, coefs):
    """Differs beyond the clipping range only."""
    surrogate = clipped(rows, new, coefs, 1 + 2 * coefs.clip_coef)
    return with_terms(rows, new, coefs, surrogate, 0.5 * (new.values - rows.returns) ** 2)


def dual_clip(rows, new, coefs):
    """ArXiv 1912.09729, equation 5: differs where the ratio is beyond 3 and the advantage negative."""
    surrogate = clipped(rows, new, coefs, 1 + coefs.clip_coef)
    surrogate = torch.where(rows.advantages < 0, torch.max(surrogate, 3 * rows.advantages), surrogate)
    return with_terms(rows, new, coefs, surrogate, 0.5 * (new.values - rows.returns) ** 2)


def huber(rows, new, coefs):
    """Differs where values are off by more than 2."""
    errors = nn.functional.huber_loss(new.values, rows.returns, reduction="none", delta=2.0)
    return with_terms(rows, new, coefs, clipped(rows, new, coefs, 1 + coefs.clip_coef), errors)


def small_penalty(rows, new, coefs):
    """Differs by little: less than a thousandth of the gradient."""
    losses = ppo_loss(rows, new, coefs)
    return losses._replace(loss=losses.loss + 1e-4 * rows.weights @ new.log_probs**2)


LOSSES = {"clip": wider_clip, "dual clip": dual_clip, "huber": huber, "penalty": small_penalty}


def patched(owner, name, edit):
    """A function that puts `edit(what the method returns)` in its place."""
    method = getattr(owner, name)
    return lambda monkeypatch: monkeypatch.setattr(
        owner, name, lambda self, *args, **kwargs: edit(method(self, *args, **kwargs))
    )


def squashed_means(params):
    """Means within -1 .. 1; where they are close to zero, as at a run's start, nothing changes."""
    means, log_std = params.chunk(2, dim=-1)
    return torch.cat([means.tanh(), log_std], dim=-1)


def softly_bounded(params):
    """Log standard deviations within -0.5 .. 0.5; at zero, as at a run's start, nothing changes."""
    means, log_std = params.chunk(2, dim=-1)
    return torch.cat([means, 0.5 * torch.tanh(2 * log_std)], dim=-1)


def sample_bounded(distribution, logits, noise):
    """A choice by logits within -2 .. 2; those of a fresh policy are."""
    return distribution.mode(logits.clamp(-2, 2) + noise)


AGENTS = {
    "temperature": patched(Agent, "policy_params", lambda params: params / 2),
    "entropy": patched(Agent, "forward", lambda new: new._replace(entropy=2 * new.entropy)),
    "values": patched(Agent, "forward", lambda new: new._replace(values=new.values.sinh())),
    "state values": patched(Agent, "state_values", lambda values: 2 * values),
    "networks": patched(MLP, "forward", lambda outputs: 2 * outputs),
}
CHOICES = {
    "log_prob": patched(Categorical, "log_prob_and_entropy", lambda pair: (pair[0].clamp(min=-1.0), pair[1])),
}
BOXES = {
    "density": patched(DiagonalGaussian, "log_prob", lambda log_prob: log_prob / 2),
    "squash": patched(Agent, "policy_params", squashed_means),
    "soft bound": lambda monkeypatch: monkeypatch.setattr(Agent, "bounded", lambda self, x: 0.5 * torch.tanh(2 * x)),
}
EDITS = [
    *[
        pytest.param(spec, lambda patch, edited=edited: edit_loss(patch, edited), id=f"{kind}-{name}")
        for kind, spec in (("box", BOX_SPEC), ("choice", CHOICE_SPEC))
        for name, edited in LOSSES.items()
    ],
    *[pytest.param(BOX_SPEC, edit, id=f"box-{name}") for name, edit in (AGENTS | BOXES).items()],
    *[pytest.param(CHOICE_SPEC, edit, id=f"choice-{name}") for name, edit in (AGENTS | CHOICES).items()],
]


def slopes(loss, weights):
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, weights, materialize_grads=True)])


def train_on_two(agent, free, module, monkeypatch, edit):
    """Gradients of a run's first minibatch and of a later one: the module's, and those of the plain path as edited.

    Returns:
        Both gradients of the later minibatch, and the one that the closed form would have given.
    """
    edit(monkeypatch)
    for shift, spread in ((0.0, 0.0), (0.3, 2.0)):
        rows = make_rows(free, 256, spread)
        with torch.no_grad():
            module.weights.flat += shift * torch.linspace(-1, 1, module.weights.flat.numel(), dtype=torch.float64)
        nn.utils.vector_to_parameters(module.weights.flat.detach().clone(), free.parameters())
        new = free(rows.obs, rows.actions, rows.sequences)
        assert isinstance(new, Evaluation)
        expected = slopes(loss_file.ppo_loss(rows, new, COEFS).loss, list(free.parameters()))
        got = slopes(module(rows, COEFS).loss, [module.weights.flat])
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    return got, slopes(CompiledLoss(agent, module.weights)(rows, COEFS).loss, [module.weights.flat])


def fresh_agent(spec, activation="tanh", hidden_sizes=(16,)):
    """An agent as a run starts with it, with the small gain of the policy's head; and a copy of it."""
    config = Config(ortho_init=True, hidden_sizes=hidden_sizes, activation_function=activation)
    agent = make_agent(spec, config).double()
    return agent, copy.deepcopy(agent)


@pytest.mark.parametrize(("spec", "edit"), EDITS)
def test_an_edit_is_what_trains(spec, edit, monkeypatch, capsys):
    """Also where it shows in the first minibatch in nothing: the gradient is that of the plain path, as edited."""
    agent, free = fresh_agent(spec)
    got, fused = train_on_two(agent, free, PPOLoss(agent, CONFIG), monkeypatch, edit)
    assert not torch.allclose(got, fused, rtol=1e-7, atol=1e-7 * got.norm().item())  # it matters
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(
        r"replaced: (ppo/loss|agents/\w+)\.py \([\w.]+\); training follows this code, with autograd: ", line
    )


class Halved(Categorical):
    """A distribution of one's own; its fast forms would not know."""

    def log_prob(self, params, actions):
        """Half the logarithm."""
        return super().log_prob(params, actions) / 2

    def log_prob_and_entropy(self, params, actions):
        """See above."""
        log_prob, entropy = super().log_prob_and_entropy(params, actions)
        return log_prob / 2, entropy


class Wider(DiagonalGaussian):
    """As `Halved`."""

    def log_prob(self, params, actions):
        """Half the logarithm."""
        return super().log_prob(params, actions) / 2


class OwnAgent(Agent):
    """Adds to its values."""

    def state_values(self, features):
        """One more."""
        return super().state_values(features) + 1


OWN = {Categorical: Halved, DiagonalGaussian: Wider}


@pytest.mark.parametrize("what", ["distribution", "agent"])
@each_spec
def test_a_subclass_is_what_trains_and_acts(spec, what, monkeypatch, capsys):
    """It declares no fast form of its own: nothing is compared; a line names the class."""
    agent, free = fresh_agent(spec)
    for each in (agent, free):
        if what == "agent":
            each.__class__ = OwnAgent
        else:
            each.distribution.__class__ = OWN[type(each.distribution)]
    assert not has_compiled_loss(agent)
    assert not has_compiled_actor(agent)
    got, fused = train_on_two(agent, free, PPOLoss(agent, CONFIG), monkeypatch, lambda _: None)
    assert (got - fused).norm() > 1e-3 * got.norm()
    noise = torch.zeros(2, 3, agent.distribution.noise_size, dtype=torch.float64)
    assert type(ActorChoice(agent)(agent, noise, observe(BOX, 3))) is Actor
    lines = capsys.readouterr().err.splitlines()
    name = type(agent if what == "agent" else agent.distribution).__name__
    assert [line.partition(" follows")[0] for line in lines] == [
        f"your own: {name}; {what}" for what in ("training", "acting")
    ]


ALTERED = {
    "a hook": lambda agent: agent.policy.register_forward_hook(lambda module, args, outputs: outputs / 2),
    "a hook before": lambda agent: agent.value.register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
    "a hook of a layer": lambda agent: agent.value[0].register_forward_hook(lambda module, args, outputs: outputs + 1),
    "a method": lambda agent: setattr(agent, "state_values", lambda features: Agent.state_values(agent, features) + 1),
    "a layer's method": lambda agent: setattr(agent.value[1], "forward", torch.sin),
    "a distribution's method": lambda agent: setattr(
        agent.distribution, "log_prob_and_entropy", lambda params, _: (params[:, 0], params[:, 1])
    ),
    "another activation": lambda agent: agent.value.__setitem__(1, nn.SiLU()),
    "another layer": lambda agent: agent.policy.append(nn.Dropout(0.0)),
}


@pytest.mark.parametrize("how", ALTERED)
def test_what_is_changed_in_the_agent_itself_trains(how, capsys):
    """Objects may have what their class does not: the plain path has it too."""
    agent, free = fresh_agent(CHOICE_SPEC)
    for each in (agent, free):
        ALTERED[how](each)
    assert not has_compiled_loss(agent)
    rows = make_rows(agent, 64, 0.5)
    module = PPOLoss(agent, CONFIG)
    for _ in range(2):
        assert type(module(rows, COEFS).loss) is torch.Tensor
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("changed: ")


ACTING = [
    *[
        pytest.param(spec, AGENTS["temperature"], id=f"temperature-{spec.action.kind}")
        for spec in (BOX_SPEC, CHOICE_SPEC)
    ],
    pytest.param(CHOICE_SPEC, AGENTS["networks"], id="networks"),
    pytest.param(BOX_SPEC, BOXES["squash"], id="squash"),
    pytest.param(CHOICE_SPEC, patched(Categorical, "sample", lambda actions: 0 * actions), id="sample-choice"),
    pytest.param(BOX_SPEC, patched(DiagonalGaussian, "sample", lambda actions: actions / 2), id="sample-box"),
    pytest.param(BOX_SPEC, patched(Agent, "with_log_std", softly_bounded), id="deviation"),
    pytest.param(CHOICE_SPEC, lambda patch: patch.setattr(Categorical, "sample", sample_bounded), id="sample-bounded"),
]


@torch.no_grad()
def test_an_edit_that_acts_is_found_in_large_observations(monkeypatch, capsys):
    """Where logits of hundreds would leave nothing to chance, were they not as small as they are at the start."""
    agent, _ = fresh_agent(CHOICE_SPEC, "relu", (64, 64))
    monkeypatch.setattr(Categorical, "sample", lambda self, params, noise: self.mode(params))
    noise = agent.distribution.noise(torch.rand(32, 1, 3, dtype=torch.float64))
    assert type(ActorChoice(agent)(agent, noise, 30 * observe(BOX, 1))) is Actor
    assert "fast/compiled_actor.py" in capsys.readouterr().err


@pytest.mark.parametrize("num_envs", [1, 8])
@pytest.mark.parametrize(("spec", "edit"), ACTING)
@torch.no_grad()
def test_an_edit_is_what_acts(spec, edit, num_envs, monkeypatch, capsys):
    """Found on the first observations, whatever the number of environments, and said once in a run."""
    agent, _ = fresh_agent(spec)
    agent, choice = agent.float(), ActorChoice(agent)
    assert has_compiled_actor(agent)
    edit(monkeypatch)
    obs = observe(BOX, num_envs)
    for rollout in range(3):
        torch.manual_seed(rollout)
        uniform = torch.rand(32, num_envs, agent.distribution.noise_size, dtype=torch.float64)
        noise = agent.distribution.noise(uniform).float()
        actor = choice(agent, noise, obs)
        assert type(actor) is Actor
        for drawn in noise:
            np.testing.assert_allclose(actor.act(obs.numpy()), agent.act(obs, drawn)[0], rtol=1e-5, atol=1e-6)
    (line,) = capsys.readouterr().err.splitlines()
    assert "fast/compiled_actor.py" in line


@each_spec
def test_an_edit_of_the_clip_is_found_however_narrow_it_is(spec, monkeypatch, capsys):
    agent, free = fresh_agent(spec)
    edit_loss(monkeypatch, wider_clip)
    PPOLoss(agent, CONFIG)(make_rows(free, 64), COEFS._replace(clip_coef=0.01))
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("edited", [dual_clip, huber])
@each_spec
def test_an_edit_is_found_however_far_away_it_matters(spec, edited, monkeypatch, capsys):
    """Before the first step a row is where the agent left it, and a value about right."""
    agent, free = fresh_agent(spec, hidden_sizes=(2,))
    edit_loss(monkeypatch, edited)
    rows = make_rows(free, 64)
    rows = rows._replace(obs=rows.obs / 100, returns=rows.values)
    with torch.no_grad():
        rows = rows._replace(log_probs=free(rows.obs, rows.actions).log_probs)
    PPOLoss(agent, CONFIG)(rows, COEFS)
    assert len(capsys.readouterr().err.splitlines()) == 1


NOT_FINITE = {
    "NaN in some rows": lambda rows, new: rows.weights @ (rows.advantages.sqrt() * new.log_probs),
    "NaN beside the loss": lambda rows, new: float("nan"),
    "infinite": lambda rows, new: float("inf"),
    "NaN in the gradient": lambda rows, new: 0 * (new.log_probs - new.log_probs).abs().sqrt().sum(),
    "NaN later": lambda rows, new: rows.weights @ (1 + 2 - (new.values - rows.returns)).log(),
}


@pytest.mark.parametrize("term", NOT_FINITE.values(), ids=NOT_FINITE)
@each_spec
def test_an_edit_that_is_not_finite_trains_as_written(spec, term, monkeypatch, capsys):
    """Which the run's guard then reports; the fast loss would go on as if there were no edit."""

    def edited(rows, new, coefs):
        losses = ppo_loss(rows, new, coefs)
        return losses._replace(loss=losses.loss + term(rows, new))

    agent, free = fresh_agent(spec)
    edit_loss(monkeypatch, edited)
    module, rows = PPOLoss(agent, CONFIG), make_rows(free, 64, 0.3)
    expected = minibatch_loss(free, rows, COEFS)
    got = module(rows, COEFS)
    torch.testing.assert_close(got.loss, expected.loss, equal_nan=True)
    got = slopes(got.loss, [module.weights.flat])
    torch.testing.assert_close(
        got, slopes(expected.loss, list(free.parameters())), rtol=1e-9, atol=1e-9, equal_nan=True
    )
    assert "ppo/loss.py" in capsys.readouterr().err


def test_a_share_without_rows_decides_nothing(monkeypatch, capsys):
    """A rank whose first minibatch is empty goes by the edited loss too, from its first rows on."""
    agent, free = fresh_agent(CHOICE_SPEC)
    edit_loss(monkeypatch, wider_clip)
    module, rows = PPOLoss(agent, CONFIG), make_rows(free, 64, 0.3)
    assert module(type(rows)(*(column[:0] for column in rows[:-1])), COEFS).loss.item() == 0
    expected = slopes(minibatch_loss(free, rows, COEFS).loss, list(free.parameters()))
    torch.testing.assert_close(slopes(module(rows, COEFS).loss, [module.weights.flat]), expected, rtol=1e-9, atol=1e-9)
    assert len(capsys.readouterr().err.splitlines()) == 1


@each_spec
@pytest.mark.parametrize("count", [4, 7, 16, 64, 127])
def test_without_an_edit_the_compiled_loss_trains(spec, count, capsys):
    """Rounding at a bound is no difference, with a clipped value loss either, whatever the number of rows."""
    for seed in range(8):
        agent = make_agent(spec, Config(seed=seed, activation_function="tanh"))
        torch.manual_seed(seed)
        rows = make_rows(copy.deepcopy(agent).double(), count)
        rows = type(rows)(*(each.float() if each.dtype == torch.float64 else each for each in rows[:-1]))
        assert has_compiled_loss(agent)
        PPOLoss(agent, CONFIG)(rows, COEFS._replace(clip_vloss=True))
    assert capsys.readouterr().err == ""
