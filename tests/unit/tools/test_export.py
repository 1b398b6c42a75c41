"""Exported policies, run by onnxruntime and torch.jit alone: they act as `load_agent` does, of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import fabric_ppo
from fabric_ppo.agents.policy import load_agent
from fabric_ppo.envs.spaces import EnvSpec
from fabric_ppo.tools.export import export
from tests.fixtures.exported import (
    AGENTS,
    named,
    numbers_of,
    observations,
    one_table_of_operators,
    open_file,
    parts_named,
    save,
    transformed,
)

__all__ = ["one_table_of_operators"]
FILES = {"onnx": "policy.onnx", "torchscript": "policy.pt"}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def metadata_in(path):
    if path.suffix == ".onnx":
        return {each.key: each.value for each in onnx.load(path).metadata_props}
    files = {"metadata.json": ""}
    torch.jit.load(path, _extra_files=files)
    return json.loads(files["metadata.json"])


@pytest.mark.usefixtures("one_table_of_operators")
@pytest.mark.parametrize("to", FILES)
@pytest.mark.parametrize("name", AGENTS)
def test_the_file_acts_as_the_agent(name, to, tmp_path):
    run_dir, path = save(tmp_path, name), tmp_path / FILES[to]
    exported = export(run_dir, to, path, verify_steps=100, own_code=True)
    assert exported.agreement.observations == 100
    policy, run = load_agent(run_dir), open_file(path)
    kind, rng = metadata_in(path)["noise"], np.random.default_rng(0)
    obs, number = observations(name, 64), numbers_of(policy)
    for count in (1, 7, 64):
        batch = obs[:count]
        rows = batch if policy.spec.observation.parts else np.stack([np.asarray(each) for each in batch])
        before = rng.normal(size=(count, policy.memory_size)).astype(number)
        uniform = rng.uniform(0.001, 0.999, (count, policy.noise_size))
        for drawn in (None, uniform):
            noise = np.zeros_like(uniform) if drawn is None else transformed(kind, uniform)
            memory = {"memory": before} if policy.memory_size else {}
            out = run(named(batch) | {"noise": noise.astype(number)} | memory)
            after = before.copy()
            actions = policy.act(rows, drawn, after)
            parts = parts_named(actions)
            assert {each for each in out if each.startswith("action")} == parts.keys()
            for each, expected in parts.items():
                assert (out[each].dtype, out[each].shape) == (expected.dtype, expected.shape)
                if expected.dtype.kind == "f":
                    np.testing.assert_allclose(out[each], expected, **CLOSE)
                else:
                    np.testing.assert_array_equal(out[each], expected)
            assert ("value" in out) == ("critic_keys" not in AGENTS[name])
            if "value" in out:
                np.testing.assert_allclose(out["value"], policy.value(rows, before), **CLOSE)
            assert ("next_memory" in out) == (policy.memory_size > 0)
            if policy.memory_size:
                np.testing.assert_allclose(out["next_memory"], after, **CLOSE)


def weights_of(run_dir):
    return {name: each.double().numpy() for name, each in load_agent(run_dir)._agent.state_dict().items()}


def layers(weights, name, x):
    """A perceptron of three layers with rectifiers, in NumPy."""
    for index in (0, 2, 4):
        x = x @ weights[f"{name}.{index}.weight"].T + weights[f"{name}.{index}.bias"]
        x = np.maximum(x, 0) if index < 4 else x
    return x


def normalised(weights, x):
    count, total, squares = (weights[f"obs_moments.{name}"] for name in ("count", "total", "squares"))
    mean = total / count
    return np.clip((x - mean) / np.sqrt(squares / count - mean**2 + 1e-8), -10, 10)


@pytest.mark.parametrize("to", FILES)
def test_a_squashed_normal_policy_is_its_formula(to, tmp_path):
    run_dir, path = save(tmp_path, "squashed"), tmp_path / FILES[to]
    export(run_dir, to, path, verify="none")
    weights, rng = weights_of(run_dir), np.random.default_rng(0)
    obs, noise = (rng.normal(size=(50, 3)).astype(np.float32) for _ in range(2))
    out = open_file(path)({"obs": obs * 4, "noise": noise})
    features = normalised(weights, obs * 4.0)
    means = layers(weights, "policy", features)
    drawn = means + np.exp(weights["log_std"]) * noise
    low, high = np.array([-2, 0.1, -np.inf]), np.array([1, 3, 0.3])
    expected = np.tanh(drawn[:, :2]) * (high - low)[:2] / 2 + (high + low)[:2] / 2
    np.testing.assert_allclose(out["action"][:, :2], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out["action"][:, 2], np.minimum(drawn[:, 2], 0.3), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out["params"][:, :3], means, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out["value"], layers(weights, "value", features)[:, 0], rtol=1e-4, atol=1e-4)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("to", FILES)
def test_a_masked_lstm_is_its_formula(to, tmp_path):
    run_dir, path = save(tmp_path, "lstm"), tmp_path / FILES[to]
    export(run_dir, to, path, verify="none")
    weights, rng, run = weights_of(run_dir), np.random.default_rng(0), open_file(path)
    memory, hidden, cell = np.zeros((5, 8), np.float32), np.zeros((5, 4)), np.zeros((5, 4))
    for _ in range(6):
        obs, mask = rng.normal(size=(5, 3)).astype(np.float32), rng.integers(0, 2, (5, 4)).astype(np.int8)
        mask[:, 2] = 1
        noise = rng.gumbel(size=(5, 4)).astype(np.float32)
        out = run({"obs.action_mask": mask, "obs.observation": obs, "noise": noise, "memory": memory})
        x, cell_name = normalised(weights, obs), "memory.cell."
        gates = x @ weights[f"{cell_name}weight_ih"].T + weights[f"{cell_name}bias_ih"]
        gates += hidden @ weights[f"{cell_name}weight_hh"].T + weights[f"{cell_name}bias_hh"]
        enters, forgets, candidate, leaves = np.split(gates, 4, axis=1)
        cell = sigmoid(forgets) * cell + sigmoid(enters) * np.tanh(candidate)
        hidden = sigmoid(leaves) * np.tanh(cell)
        logits = np.where(mask == 1, layers(weights, "policy", hidden), -np.inf)
        np.testing.assert_array_equal(out["action"], np.argmax(logits + noise, axis=1))
        memory = out["next_memory"]
        np.testing.assert_allclose(memory, np.hstack([hidden, cell]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", FILES)
def test_the_file_says_what_it_holds(to, tmp_path):
    run_dir, path = save(tmp_path, "dict"), tmp_path / FILES[to]
    (run_dir / "summary.json").write_text(json.dumps({"seed": 7, "env_steps": 4096, "updates": 3}))
    export(run_dir, to, path, verify="none")
    found = metadata_in(path)
    assert EnvSpec.from_json(found["env_spec"]) == load_agent(run_dir).spec
    assert (found["env_id"], found["seed"], found["env_steps"], found["updates"]) == (
        "tests.fixtures.export_envs:Spaced-v0", "7", "4096", "3",
    )  # fmt: skip
    assert found["fabric_ppo_version"] == fabric_ppo.__version__
    names = ["obs.image", "obs.in ner.a", "obs.in ner.b.0", "obs.in ner.b.1", "obs.wide", "noise"]
    assert [each["name"] for each in json.loads(found["inputs"])] == names
    assert [each["name"] for each in json.loads(found["outputs"])] == ["action", "params", "value"]
    assert str(tmp_path).encode() not in path.read_bytes()
    assert fabric_ppo.__file__.encode() not in path.read_bytes()


@pytest.mark.usefixtures("one_table_of_operators")
def test_onnx_has_names_types_and_a_free_batch(tmp_path):
    run_dir, path = save(tmp_path, "lstm, image"), tmp_path / "policy.onnx"
    for opset in (18, 21, 25):
        export(run_dir, "onnx", path, opset=opset, verify="none")
        model = onnx.load(path)
        onnx.checker.check_model(model)
        assert [(each.domain, each.version) for each in model.opset_import] == [("", opset)]
    shapes = {
        each.name: [dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim]
        for each in (*model.graph.input, *model.graph.output)
    }
    assert shapes["obs.image"] == ["batch", 36, 36, 3]
    assert shapes["obs.in ner.a"] == shapes["action"] == shapes["value"] == ["batch"]
    assert shapes["memory"] == shapes["next_memory"] == ["batch", 8]
    assert shapes["noise"] == shapes["params"] == ["batch", 4]
    types = {each.name: each.type.tensor_type.elem_type for each in model.graph.input}
    assert types["obs.image"] == onnx.TensorProto.UINT8


def test_the_same_policy_gives_the_same_onnx(tmp_path):
    run_dir = save(tmp_path, "gru")
    contents = [export(run_dir, "onnx", tmp_path / "policy.onnx", verify="none").path.read_bytes() for _ in range(2)]
    assert contents[0] == contents[1]


def test_exporting_changes_nothing_for_the_caller(tmp_path):
    run_dir = save(tmp_path, "mask")
    threads, grad, state = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_rng_state()
    exported = fabric_ppo.export(run_dir, to="torchscript", out=tmp_path / "p.pt", own_code=True)
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)
    assert torch.equal(torch.get_rng_state(), state)
    assert exported.agreement.observations == 1000
    assert sorted(each.name for each in tmp_path.iterdir()) == ["p.pt", "p_pt_run.py", "policy.safetensors"]
    assert Path(exported).read_bytes()[:2] == b"PK"
