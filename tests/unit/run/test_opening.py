"""The lines at the beginning of a run are true of the environment and the agent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import SCRIPT_CONFIGS
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.envs.space_text import format_space
from fabric_ppo.run import opening
from fabric_ppo.run.opening import opening_lines

BOX = spaces.Box(-1, 1, (2, 3), np.float32)


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (BOX, "Box(2, 3) float32"),
        (spaces.Box(0, 255, (84, 84, 3), np.uint8), "Box(84, 84, 3) uint8"),
        (spaces.Box(-1, 1, (), np.float32), "Box() float32"),
        (spaces.Discrete(5, start=2), "Discrete(5)"),
        (spaces.MultiDiscrete([2, 3]), "MultiDiscrete(2, 3)"),
        (spaces.MultiDiscrete([2] * 9), "MultiDiscrete(2, 2, 2, 2, 5 more)"),
        (spaces.MultiBinary(7), "MultiBinary(7)"),
        (spaces.Dict({"a": BOX, "b": spaces.Dict({"c": BOX})}), "(a Box(2, 3) float32, b.c Box(2, 3) float32)"),
        (
            spaces.Tuple([spaces.Discrete(2)] * 6),
            "(0 Discrete(2), 1 Discrete(2), 2 Discrete(2), 3 Discrete(2), 2 more)",
        ),
    ],
)
def test_spaces_in_a_few_words(space, text):
    assert format_space(env_spec("x", space, spaces.Discrete(2)).observation) == text


@pytest.mark.parametrize("first_update", [0, 3])
@pytest.mark.parametrize(("script", "ranks"), [("torch", 1), ("fabric", 3), ("decoupled", 1)])
def test_four_lines(monkeypatch, script, ranks, first_update):
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 3}.items():
        monkeypatch.setenv(name, str(value))
    config = replace(SCRIPT_CONFIGS[script](), num_steps=128, num_envs=2, total_timesteps=12_345, hidden_sizes=(8,))
    env = gymnasium.make("CartPole-v1")
    agent = make_agent(env_spec("CartPole-v1", env.observation_space, env.action_space), config)
    # two networks with a hidden layer of 8: 4 x 8 + 8 each, and heads of 2 and 1
    count = 2 * 40 + 8 * 2 + 2 + 8 + 1
    devices = "cpu (player) and cpu (2 trainers)" if script == "decoupled" else "cpu"
    of_ranks = " x 3 ranks" if ranks == 3 else ""
    begins = ", begins after update 3" if first_update else ""
    assert opening_lines(config, Path("logs/x"), agent, ranks, first_update).splitlines() == [
        "run     logs/x",
        "env     CartPole-v1: observations Box(4) float32, actions Discrete(2)",
        f"agent   {count} parameters on {devices}",
        f"updates {12_345 // (256 * ranks)} of {256 * ranks} transitions "
        f"(128 steps x 2 environments{of_ranks}){begins}",
    ]


@pytest.mark.parametrize(
    ("script", "flags", "hint"),
    [
        ("torch", {}, "cpu; --cuda trains on the GPU"),
        ("fabric", {}, "cpu; fabric run --accelerator=cuda trains on the GPU"),
        ("decoupled", {}, "cpu (1 trainer); --cuda trains on the GPU"),
        ("decoupled", {"cuda": True}, "cuda (1 trainer)"),
    ],
)
def test_a_gpu_that_is_not_used_is_mentioned(script, flags, hint, monkeypatch):
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(opening, "count_gpus", lambda: 1)
    env = gymnasium.make("CartPole-v1")
    config = SCRIPT_CONFIGS[script](**flags)
    agent = make_agent(env_spec("CartPole-v1", env.observation_space, env.action_space), config)
    assert opening_lines(config, Path("logs/x"), agent, 1, 0).splitlines()[2].endswith(hint)
