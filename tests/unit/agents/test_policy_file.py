"""Policies in files: their content, files that are refused, and training that starts with one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.policy import Policy, load_agent
from fabric_ppo.agents.policy_file import POLICY_FILE, _differing_text, save_policy, start_from
from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.envs.spaces import SpaceSpec
from fabric_ppo.process.errors import ConfigError
from tests.fixtures.agents import agent_for
from tests.fixtures.configs import NETWORKS, TINY
from tests.fixtures.spaces import sample_many


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_file_is_the_state_dict_and_what_rebuilds_the_agent(tmp_path, dtype):
    """Names without prefix, and JSON beside them; every bit and the type come back, the activation too."""
    agent = agent_for("Pendulum-v1", (8, 4), "relu").to(dtype)
    save_policy(agent, tmp_path)
    with safe_open(tmp_path / POLICY_FILE, framework="pt") as file:
        weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert weights.keys() == agent.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in agent.state_dict().items())
    assert all(tensor.dtype == dtype for tensor in weights.values())
    assert json.loads(metadata["env_spec"])["env_id"] == "Pendulum-v1"
    assert json.loads(metadata["agent"]) == {
        "activation_function": "relu",
        "hidden_sizes": [8, 4],
        "normalize_observations": False,
        "reward_discount": None,
        "encoder": "flatten",
        "shared_trunk": False,
        "layer_norm": False,
        "state_dependent_std": False,
        "log_std_min": None,
        "log_std_max": None,
        "recurrent": "none",
        "recurrent_size": 0,
    }
    obs = sample_many(gymnasium.make("Pendulum-v1").observation_space, 8)
    np.testing.assert_array_equal(load_agent(tmp_path).value(obs), Policy(agent).value(obs))
    before = (tmp_path / POLICY_FILE).read_bytes()
    save_policy(agent, tmp_path)
    assert (tmp_path / POLICY_FILE).read_bytes() == before


def refusal(folder):
    """The one line that `load_agent` raises."""
    with pytest.raises(ConfigError) as caught:
        load_agent(folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    return message


def test_a_folder_without_a_policy_is_refused(tmp_path):
    assert POLICY_FILE in refusal(tmp_path)
    refusal(tmp_path / "missing")
    (tmp_path / POLICY_FILE).mkdir()
    refusal(tmp_path)


def test_a_truncated_policy_is_refused(tmp_path):
    """Wherever it was cut."""
    save_policy(agent_for(), tmp_path)
    content = (tmp_path / POLICY_FILE).read_bytes()
    for size in [0, 1, 7, 8, 9, *range(20, len(content), 97), len(content) - 1]:
        (tmp_path / POLICY_FILE).write_bytes(content[:size])
        refusal(tmp_path)


def test_a_damaged_header_never_shows_a_traceback(tmp_path):
    """Any byte of the header changed: it loads, or it is refused in one line."""
    save_policy(agent_for(hidden_sizes=(3,)), tmp_path)
    content = (tmp_path / POLICY_FILE).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for position in range(header):
        for mask in (0x01, 0x12):
            damaged = bytearray(content)
            damaged[position] ^= mask
            (tmp_path / POLICY_FILE).write_bytes(damaged)
            try:
                load_agent(tmp_path)
            except ConfigError as error:
                refused += 1
                assert "\n" not in str(error)  # noqa: PT017
    assert refused > header


@pytest.mark.parametrize(
    "change",
    [
        lambda weights, metadata: ({}, metadata),
        lambda weights, metadata: (weights, None),
        lambda weights, metadata: (weights, {"env_spec": metadata["env_spec"]}),
        lambda weights, metadata: (weights, metadata | {"env_spec": "[]"}),
        lambda weights, metadata: (weights, metadata | {"env_spec": "{"}),
        lambda weights, metadata: (weights, metadata | {"env_spec": '{"env_id": "a", "observation": 1, "action": 2}'}),
        lambda weights, metadata: (
            weights,
            metadata | {"agent": '{"activation_function": "sine", "hidden_sizes": [16]}'},
        ),
        lambda weights, metadata: (weights, metadata | {"agent": "null"}),
        lambda weights, metadata: (weights | {"extra": torch.zeros(1)}, metadata),
        lambda weights, metadata: (weights | {"value.0.weight": torch.zeros(1)}, metadata),
        lambda weights, metadata: ({name: tensor.long() for name, tensor in weights.items()}, metadata),
    ],
    ids=[
        "no weights",
        "no metadata",
        "no agent",
        "no spec",
        "no JSON",
        "no spaces",
        "unknown activation",
        "no architecture",
        "extra weight",
        "wrong shape",
        "integers",
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, change):
    save_policy(agent_for(), tmp_path)
    with safe_open(tmp_path / POLICY_FILE, framework="pt") as file:
        weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    weights, metadata = change(weights, metadata)
    save_file(weights, tmp_path / POLICY_FILE, metadata)
    refusal(tmp_path)


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_a_policy_comes_back(tmp_path, options):
    config = Config(env_id="Pendulum-v1", **TINY, **options, run_dir=str(tmp_path / "run"))
    policy = load_agent(train(config))
    again = make_agent(policy.spec, Config(env_id="Pendulum-v1", **options))
    start_from(again, str(tmp_path / "run"))
    obs = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(policy.value(obs), again.values(torch.from_numpy(obs)), rtol=1e-6)


def test_a_training_starts_with_a_trained_policy(tmp_path):
    first = train(Config(**TINY, normalize_observations=True, run_dir=str(tmp_path / "first")))
    spec = load_agent(first).spec
    trained, other = (make_agent(spec, Config(**TINY, normalize_observations=True, seed=7)) for _ in range(2))
    start_from(trained, str(first))
    obs = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    values = trained.values(torch.from_numpy(obs)).detach().numpy()
    assert np.array_equal(values, load_agent(first).value(obs))
    assert not np.array_equal(values, other.values(torch.from_numpy(obs)).detach().numpy())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"hidden_sizes": (8,)},
            r"its networks are hidden_sizes \(64, 64\); this run's, hidden_sizes \(8,\), are expected",
        ),
        (
            {"env_id": "Acrobot-v1"},
            r"its observations are Box\(4\) float32; this run's, Box\(6\) float32, are expected",
        ),
    ],
)
def test_another_kind_of_policy_is_no_start(tmp_path, flags, message):
    first = train(Config(**TINY, run_dir=str(tmp_path / "first")))
    with pytest.raises(ConfigError, match=f"^--init-from {first}: {message}$"):
        train(Config(**TINY | flags, init_from=str(first), run_dir=str(tmp_path / "second")))
    with pytest.raises(ConfigError, match=rf"^--init-from {Path.cwd()}/nowhere: .*no policy.safetensors"):
        train(Config(**TINY, init_from="nowhere", run_dir=str(tmp_path / "third")))


BOX = SpaceSpec("box", (3,), "float32")
KEYS = [(name,) for name in "abcdef"]


def dict_of(spaces):
    return SpaceSpec("nested", (8,), "uint8", parts=tuple(spaces.items()))


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (BOX, replace(BOX, shape=(4,)), ("Box(3) float32", "Box(4) float32")),
        (BOX, replace(BOX, fit="squash"), ("Box(3) float32 with fit clip", "Box(3) float32 with fit squash")),
        (
            dict_of(dict.fromkeys(KEYS, BOX)),
            dict_of(dict.fromkeys(KEYS, BOX) | {("f",): replace(BOX, dtype="float64")}),
            ("with f Box(3) float32", "with f Box(3) float64"),
        ),
        (
            dict_of(dict.fromkeys(KEYS, BOX)),
            dict_of(dict.fromkeys([*KEYS[:-1], ("g",)], BOX)),
            ("with f", "without f"),
        ),
    ],
)
def test_spaces_that_differ_are_shown_as_people_write_them(theirs, ours, expected):
    texts = _differing_text(theirs, ours)
    assert tuple(text[-len(end) :] for text, end in zip(texts, expected, strict=True)) == expected
    assert "SpaceSpec" not in "".join(texts)
