"""Recurrent agents, held against PyTorch's own LSTM and GRU, run along each episode from its first observation."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.memory import Memory
from fabric_ppo.agents.policy import Policy, load_agent
from fabric_ppo.api import train
from fabric_ppo.config import Config, DecoupledConfig
from fabric_ppo.envs.make import make_envs
from fabric_ppo.fast.loss_module import PPOLoss
from fabric_ppo.ppo.batch import make_batch
from fabric_ppo.ppo.loss import autograd_loss
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.group import ALONE
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.rollouts.values import revalue
from fabric_ppo.seeding import evaluation_seed
from tests.resuming import assert_a_killed_run_goes_on, finish, summary
from tests.resuming import train as train_ranks
from tests.runs import run_ranks
from tests.test_batch import on_ranks
from tests.toy_envs import decode, encode, toy_env

CPU = torch.device("cpu")
KINDS = ["lstm", "gru"]
TINY = {"recurrent_size": 5, "hidden_sizes": (7,), "activation_function": "tanh", "num_threads": 1}


def layer_of(memory):
    """PyTorch's layer for whole sequences, with the weights of `memory`."""
    kind = nn.LSTM if isinstance(memory.cell, nn.LSTMCell) else nn.GRU
    layer = kind(memory.cell.input_size, memory.num_features, batch_first=True).to(memory.cell.weight_ih.dtype)
    layer.load_state_dict({f"{name}_l0": tensor for name, tensor in memory.cell.state_dict().items()})
    return layer


def recurrent_config(kind="lstm", **flags):
    return Config(
        **TINY
        | {"recurrent": kind, "num_steps": 6, "num_envs": 3, "sequence_length": 3, "per_rank_batch_size": 6}
        | flags
    )


def make_recurrent(config, num_envs=3):
    """Environments and an agent in float64 that tells their observations apart."""
    envs = make_envs(config, 0, 1)
    agent = make_agent(envs.spec, config).double()
    with torch.no_grad():
        agent.memory.cell.weight_ih *= 0.01  # inputs go up to 1000
        agent.memory.cell.weight_hh *= 2.0
    return envs, agent


def collected(config, envs, agent, count):
    """Consecutive rollouts, each a copy of its own, and each one's `Rows`."""
    buffer = RolloutBuffer(envs, agent, config.num_steps, 0)
    for update in range(count):
        rollout = collect(envs, agent, buffer, config.seed, update)
        names = [each.name for each in dataclasses.fields(rollout) if torch.is_tensor(getattr(rollout, each.name))]
        yield replace(rollout, **{name: getattr(rollout, name).clone() for name in names})


def along_episode(agent, obs):
    """Outputs of PyTorch's layer along an episode from its start, `[steps, n]`."""
    return layer_of(agent.memory)(agent.encode(torch.as_tensor(np.stack(obs)))[None])[0][0]


@pytest.mark.parametrize("kind", KINDS)
def test_along_sequences_is_pytorchs_layer_on_each_piece(kind):
    """Also its gradient; where an episode begins within a sequence, a new piece begins, with zeros."""
    torch.manual_seed(0)
    memory = Memory(kind, 4, 5).double()
    inputs = torch.randn(3 * 6, 4, dtype=torch.float64, requires_grad=True)
    state = torch.randn(3, memory.state_size, dtype=torch.float64)
    begins = torch.tensor([[0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]], dtype=torch.float64)
    outputs = memory.along(inputs, torch.cat([state, begins], dim=1))
    layer, pieces = layer_of(memory), []
    for row in range(3):
        cuts = [0, *begins[row].nonzero().flatten().tolist(), 6]
        for start, stop in itertools.pairwise(cuts):
            first = state[row] if start == 0 else torch.zeros_like(state[row])
            hidden = tuple(each[None, None].contiguous() for each in first.split(5))
            piece = inputs.view(3, 6, 4)[row, start:stop][None]
            pieces.append(layer(piece, hidden if kind == "lstm" else hidden[0])[0][0])
    torch.testing.assert_close(outputs, torch.cat(pieces), rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(outputs)
    (ours,) = torch.autograd.grad((outputs * weights).sum(), inputs)
    (theirs,) = torch.autograd.grad((torch.cat(pieces) * weights).sum(), inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(("length", "ends"), [(4, "terminated"), (4, "truncated"), (3, "truncated"), (20, "truncated")])
def test_rollouts_remember_whole_episodes(kind, backend, length, ends):
    """Values, successors' values and log-probabilities, over the edges of rollouts and up to final observations."""
    config = recurrent_config(kind, env_id=toy_env(length=length, ends=ends), env_backend=backend)
    envs, agent = make_recurrent(config)
    seen = {env: [] for env in range(3)}
    with torch.no_grad():
        for rollout in collected(config, envs, agent, 5):
            for t in range(6):
                for env in range(3):
                    seen[env].append(rollout.obs[t, env].numpy())
                    seed, step = decode("float32", seen[env][-1])
                    assert step == len(seen[env]) - 1
                    following = encode("float32", seed, step + 1)
                    *_, now, then = along_episode(agent, [*seen[env], following])
                    torch.testing.assert_close(rollout.values[t, env], agent.state_values(now[None])[0])
                    if not rollout.terminated[t, env]:
                        torch.testing.assert_close(rollout.next_values[t, env], agent.state_values(then[None])[0])
                    log_prob = agent.distribution.log_prob(
                        agent.policy_params(now[None]), rollout.actions[t, env][None]
                    )
                    torch.testing.assert_close(rollout.log_probs[t, env], log_prob[0])
                    if rollout.terminated[t, env] or rollout.truncated[t, env]:
                        seen[env] = []
    envs.close()


def test_envpools_extra_rows_are_between_two_memories():
    """EnvPool's row that starts an episode: what was remembered reaches the final observation, and not beyond it."""
    pytest.importorskip("envpool")
    config = recurrent_config(env_id="Pendulum-v1", env_backend="envpool", num_steps=150, num_envs=2)
    envs, agent = make_recurrent(config)
    seen, cut = {env: [] for env in range(2)}, 0
    with torch.no_grad():
        for rollout in collected(config, envs, agent, 3):
            for env in range(2):
                for t in range(150):
                    seen[env].append(rollout.obs[t, env].numpy())
                    if not rollout.valid[t, env]:
                        seen[env] = []
                        continue
                    if rollout.truncated[t, env] and t + 1 < 150:
                        *_, now, then = along_episode(agent, [*seen[env], rollout.obs[t + 1, env].numpy()])
                        torch.testing.assert_close(rollout.values[t, env], agent.state_values(now[None])[0])
                        torch.testing.assert_close(rollout.next_values[t, env], agent.state_values(then[None])[0])
                        cut += 1
                    elif len(seen[env]) == 3:
                        now = along_episode(agent, seen[env])[-1]
                        torch.testing.assert_close(rollout.values[t, env], agent.state_values(now[None])[0])
    envs.close()
    assert cut == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("normalizes", "shared_trunk"), [(False, False), (True, True)])
def test_the_loss_sees_the_agent_that_acted(kind, normalizes, shared_trunk):
    """Before the first gradient step, sequence by sequence, in whatever order: ratios are 1, values the same."""
    config = recurrent_config(
        kind, env_id=toy_env(length=4, ends="truncated"), normalize_observations=normalizes, shared_trunk=shared_trunk
    )
    envs, agent = make_recurrent(config)
    loss = PPOLoss(agent, replace(config, normalize_advantages=False))
    for update, rollout in enumerate(collected(config, envs, agent, 3)):
        batch = make_batch(rollout, config, ALONE, update, CPU)
        assert batch.num_minibatches(6) == 3
        for rows in batch.minibatches(range(2), 6):
            assert rows.sequences.shape == (2, agent.memory_size + 3)
            now = loss(rows)
            torch.testing.assert_close(now.log_probs, rows.log_probs)
            torch.testing.assert_close(now.values, rows.values)
        agent.absorb(rollout.moments)
    envs.close()


def test_gradients_flow_back_through_a_sequence_and_no_further():
    """Against autograd through PyTorch's LSTM, from the state in which the sequence began, taken as given."""
    config = recurrent_config(env_id=toy_env(length=4), num_envs=1, num_steps=12, sequence_length=6)
    envs, agent = make_recurrent(config)
    *_, rollout = collected(config, envs, agent, 2)
    rows = make_batch(rollout, config, ALONE, 1, CPU).rows
    autograd_loss(agent, rows, config).loss.backward()
    ours = {name: each.grad.clone() for name, each in agent.named_parameters()}
    agent.zero_grad()
    layer = layer_of(agent.memory)

    class Along(nn.Module):
        num_features, state_size = agent.memory.num_features, agent.memory.state_size

        def along(self, inputs, sequences):
            pieces = []
            for steps, row in zip(inputs.split(6), sequences, strict=True):
                state, cuts = row[:10], [0, *row[10:].nonzero().flatten().tolist(), 6]
                for start, stop in itertools.pairwise(cuts):
                    hidden = tuple(each[None, None].contiguous() for each in state.split(5))
                    pieces.append(layer(steps[start:stop][None], hidden)[0][0])
                    state = torch.zeros(10, dtype=torch.float64)
            return torch.cat(pieces)

    assert rows.sequences[:, 10:].sum() == 2  # an episode of four steps begins within each sequence of six
    agent.memory = Along()
    autograd_loss(agent, rows, config).loss.backward()
    for name, each in [*agent.named_parameters(), *layer.named_parameters()]:
        key = name if name in ours else f"memory.cell.{name.removesuffix('_l0')}"
        torch.testing.assert_close(ours[key], each.grad, rtol=1e-10, atol=1e-12)
    envs.close()


def test_a_minibatch_waits_for_no_device():
    """On the meta device, where tensors have no data, looking at a value fails."""
    config = recurrent_config(env_id=toy_env(length=4))
    envs, agent = make_recurrent(config)
    (rollout,) = collected(config, envs, agent, 1)
    envs.close()
    loss = PPOLoss(agent, config).to("meta")
    for rows in make_batch(rollout, config, ALONE, 0, torch.device("meta")).minibatches(range(1), 6):
        loss(rows).loss.backward()
    assert loss.weights.flat.grad.is_meta


def test_revaluing_remembers_with_the_later_weights():
    config = recurrent_config(env_id=toy_env(length=4, ends="truncated"))
    envs, agent = make_recurrent(config)
    buffer = RolloutBuffer(envs, agent, config.num_steps, 0)
    rollout = collect(envs, agent, buffer, config.seed, 0)  # from the episodes' first steps on
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter *= 1.1
        later = revalue(agent, buffer, rollout)
        for env in range(3):
            now = along_episode(agent, rollout.obs[:4, env].numpy())
            log_probs = agent.distribution.log_prob(agent.policy_params(now), rollout.actions[:4, env])
            torch.testing.assert_close(later.values[:4, env], agent.state_values(now))
            torch.testing.assert_close(later.log_probs[:4, env], log_probs)
            final = [*rollout.obs[:4, env].numpy(), encode("float32", decode("float32", rollout.obs[0, env])[0], 4)]
            torch.testing.assert_close(later.next_values[3, env], agent.state_values(along_episode(agent, final))[-1])
    torch.testing.assert_close(later.memory[4], torch.zeros(3, 10, dtype=torch.float64))
    envs.close()


@pytest.mark.parametrize("size", [2, 3])
def test_shared_data_is_cut_as_on_one_rank(size):
    """Ranks' sequences in canonical order: their shares make up the minibatches of one rank with all environments."""
    _, agent = make_recurrent(recurrent_config(env_id=toy_env(length=4)))

    def rows_of(ranks):
        config = recurrent_config(env_id=toy_env(length=4), share_data=True, num_envs=6 // ranks.size)
        envs = make_envs(config, ranks.rank, ranks.size)
        buffer = RolloutBuffer(envs, agent, config.num_steps, ranks.rank * config.num_envs)
        rollout = collect(envs, agent, buffer, config.seed, 0)
        envs.close()
        batch = make_batch(rollout, config, ranks, 0, CPU)
        return list(batch.minibatches(range(1), 6 if ranks.size > 1 else 6 * size))

    (alone,), shared = on_ranks(1, rows_of), on_ranks(size, rows_of)
    for chunk, parts in zip(alone, zip(*shared, strict=True), strict=True):
        for name in ("obs", "actions", "log_probs", "sequences"):
            assert torch.equal(getattr(chunk, name), torch.cat([getattr(part, name) for part in parts])), name


def test_a_share_without_sequences_takes_part():
    """H7: four sequences in chunks of two for three ranks, the first of which never has one."""
    config = recurrent_config(env_id=toy_env(length=4), num_envs=1, num_steps=12, per_rank_batch_size=3)
    envs, agent = make_recurrent(config)
    (rollout,) = collected(config, envs, agent, 1)
    envs.close()
    batch, loss = make_batch(rollout, config, ALONE, 0, CPU), PPOLoss(agent, config)
    shares = [replace(batch, share=share, num_shares=3).minibatches(range(2), 3) for share in range(3)]
    assert [len(share.rows.weights) for share in shares] == [0, 12, 12]
    for share in shares:
        assert len(share) == 4
        for rows in share:
            loss(rows).loss.backward()


RECURRENT = {"recurrent": "lstm", "recurrent_size": 6, "sequence_length": 8, "per_rank_batch_size": 16}


@pytest.mark.parametrize(("size", "share_data", "kind"), [(1, False, "gru"), (2, False, "lstm"), (2, True, "lstm")])
def test_scripts_agree(tmp_path, size, share_data, kind):
    """H1."""
    flags = RECURRENT | {"recurrent": kind, "share_data": share_data, "env_id": "Pendulum-v1", "ortho_init": True}
    ends = [finish(script, size, tmp_path / script, 3, **flags) for script in ("torch", "fabric")]
    assert len({(each / "policy.safetensors").read_bytes() for each in ends}) == 1


@pytest.mark.parametrize("num_trainers", [1, 2])
def test_trainers_end_where_coupled_ranks_do(tmp_path, num_trainers):
    """H3, in float64."""
    flags = RECURRENT | {"share_data": True, "num_steps": 16, "update_epochs": 2, "test_episodes": 1, "num_threads": 1}
    decoupled = DecoupledConfig(**flags, num_envs=4, total_timesteps=64, run_dir=str(tmp_path / "d"))
    coupled = Config(**flags, num_envs=4 // num_trainers, total_timesteps=64, run_dir=str(tmp_path / "c"))
    assert run_ranks("decoupled", [decoupled] * (num_trainers + 1), "64-true") == [""] * (num_trainers + 1)
    assert run_ranks("fabric", [coupled] * num_trainers, "64-true") == [""] * num_trainers
    ours, theirs = (load_file(tmp_path / name / "policy.safetensors") for name in "dc")
    assert max((ours[name] - tensor).abs().max() for name, tensor in theirs.items()) < 1e-9


@pytest.mark.parametrize(
    ("script", "size", "flags"),
    [
        ("torch", 2, {"env_id": "Pendulum-v1", "normalize_observations": True}),
        ("fabric", 1, {"recurrent": "gru", "env_backend": "async"}),
        ("decoupled", 3, {"overlap": True}),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, script, size, flags):
    """H4: what the agent remembered is part of the checkpoint."""
    assert_a_killed_run_goes_on(tmp_path, monkeypatch, script, size, RECURRENT | flags)


@pytest.mark.parametrize("before", [1, 2])
def test_another_number_of_ranks_goes_on(tmp_path, before):
    """2 -> 1 and 1 -> 2 ranks, within rounding, as one run in float64."""
    after, ends = 3 - before, []
    for first in (before, after):
        run_dir = tmp_path / str(first)
        for size, updates in ((first, 3), (after, 6)):
            flags = RECURRENT | {"share_data": True, "num_envs": 4 // size, "per_rank_batch_size": 32 // size}
            flags |= {"anneal_lr": False, "resume": True}
            assert train_ranks("fabric", size, run_dir, updates, "64-true", **flags) == [""] * size
        ends.append(load_file(run_dir / "policy.safetensors"))
    assert max((ends[0][name] - tensor).abs().max() for name, tensor in ends[1].items()) < 1e-9
    assert summary(tmp_path / str(before))["exact_resume"] is False


def test_a_trained_agent_remembers(tmp_path):
    """`load_agent` and `evaluate`, against PyTorch's LSTM along the same episodes."""
    run_dir = train(Config(**TINY | {"recurrent": "lstm"}, total_timesteps=512, run_dir=str(tmp_path / "run")))
    policy = load_agent(run_dir)
    assert policy.memory_size == 10
    played = evaluate(policy, 3, seed=5)
    agent, layer = policy._agent, layer_of(policy._agent.memory)
    for episode, length in enumerate(played.lengths):
        env, seen, ended = gymnasium.make("CartPole-v1"), [], False
        obs, _ = env.reset(seed=evaluation_seed(5, episode))
        memory, batch_memory = policy.new_memory(), policy.new_memory(2)
        while not ended:
            seen.append(obs)
            with torch.no_grad():
                outputs = layer(torch.from_numpy(np.stack(seen))[None])[0][0]
                expected = agent.distribution.mode(agent.policy_params(outputs))[-1].item()
                value = agent.state_values(outputs)[-1].item()
            assert policy.value(obs, memory) == pytest.approx(value, rel=1e-4, abs=1e-5)
            action = policy.act(obs, memory=memory)
            assert action == expected
            np.testing.assert_array_equal(policy.act(np.stack([obs, obs]), memory=batch_memory), [expected] * 2)
            obs, _, terminated, truncated, _ = env.step(action.item())
            ended = terminated or truncated
        assert len(seen) == length
        np.testing.assert_allclose(batch_memory, np.stack([memory, memory]))
    assert Policy(agent).act(obs) == policy.act(obs, memory=policy.new_memory())
    with pytest.raises(ValueError, match=r"memory has shape \(10,\): \(2, 10\), from new_memory, is expected"):
        policy.act(np.stack([obs, obs]), memory=policy.new_memory())


class Recall(gymnasium.Env):
    """Shows a sign in the first step only, and rewards the action that repeats it four steps later."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._sign, self._step = int(self.np_random.integers(2)), 0
        return np.array([2 * self._sign - 1, 1], np.float32), {}

    def step(self, action):
        self._step += 1
        ended = self._step == 4
        return np.zeros(2, np.float32), float(ended and action == self._sign), ended, False, {}


gymnasium.register("Recall-v0", entry_point=Recall)


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_what_has_to_be_remembered_is_learned_with_memory_only(tmp_path, kind):
    """Without memory, half of the episodes at best."""
    config = Config(
        env_id="Recall-v0",
        recurrent=kind,
        recurrent_size=16,
        num_envs=16,
        num_steps=16,
        sequence_length=8,
        total_timesteps=16 * 16 * 40,
        learning_rate=1e-2,
        update_epochs=4,
        ent_coef=0.01,
        per_rank_batch_size=128,
        test_episodes=100,
        run_dir=str(tmp_path / "run"),
    )
    train(config)
    mean = summary(tmp_path / "run")["test"]["return_mean"]
    assert mean < 0.7 if kind == "none" else mean > 0.95


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"sequence_length": 0}, "--sequence-length 0: a whole number from 1 up is expected"),
        ({"sequence_length": 4}, "--sequence-length 4: a divisor of --num-steps 6 is expected"),
        ({"per_rank_batch_size": 8}, "--per-rank-batch-size 8: a multiple of --sequence-length 3 is expected"),
        ({"recurrent_size": 0}, "--recurrent-size 0: a whole number from 1 up is expected"),
        ({"recurrent": "rnn"}, "--recurrent rnn: one of none, lstm, gru is expected"),
    ],
)
def test_what_cannot_work_is_refused(flags, said):
    with pytest.raises(ConfigError) as caught:
        recurrent_config(**{"per_rank_batch_size": 6} | flags)
    assert str(caught.value) == said
