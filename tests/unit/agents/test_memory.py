"""Recurrent layers, held against PyTorch's own LSTM and GRU."""

from __future__ import annotations

import itertools
import json

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from fabric_ppo.agents.memory import Memory
from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.ppo.batch import make_batch
from fabric_ppo.ppo.loss import minibatch_loss
from fabric_ppo.process.group import ALONE
from tests.fixtures.recurrent import KINDS, layer_of, make_recurrent, recurrent_config
from tests.fixtures.rollouts import rollouts
from tests.fixtures.toy_envs import toy_env
from tests.fixtures.updates import coefs_of

CPU = torch.device("cpu")


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


def test_gradients_flow_back_through_a_sequence_and_no_further():
    """Against autograd through PyTorch's LSTM, from the state in which the sequence began, taken as given."""
    config = recurrent_config(env_id=toy_env(length=4), num_envs=1, num_steps=12, sequence_length=6)
    envs, agent = make_recurrent(config)
    *_, rollout = rollouts(envs, agent, config.num_steps, 2, seed=config.seed)
    rows = make_batch(rollout, config, ALONE, 1, CPU).rows
    minibatch_loss(agent, rows, coefs_of(config)).loss.backward()
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
    minibatch_loss(agent, rows, coefs_of(config)).loss.backward()
    for name, each in [*agent.named_parameters(), *layer.named_parameters()]:
        key = name if name in ours else f"memory.cell.{name.removesuffix('_l0')}"
        torch.testing.assert_close(ours[key], each.grad, rtol=1e-10, atol=1e-12)
    envs.close()


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
    mean = json.loads((tmp_path / "run/summary.json").read_text())["test"]["return_mean"]
    assert mean < 0.7 if kind == "none" else mean > 0.95
