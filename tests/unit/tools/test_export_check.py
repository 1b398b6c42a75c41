"""The comparison of an exported policy with the agent: what is equal passes, and nothing else does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fabric_ppo.agents.policy import Policy
from fabric_ppo.tools.export_check import compare
from fabric_ppo.tools.export_interface import NamedPolicy, interface_of, split_rows
from fabric_ppo.tools.export_observations import of_space
from tests.fixtures.exported import agent_of, named, observations, spec_of


def compared(policy, change=lambda out, inputs: None, steps=200):
    interface = interface_of(policy)
    module, sizes = NamedPolicy(policy, interface), []

    def run(inputs):
        with torch.no_grad():
            out = {k: v.numpy().copy() for k, v in module({k: torch.from_numpy(v) for k, v in inputs.items()}).items()}
        sizes.append(len(inputs["noise"]))
        change(out, inputs)
        return out

    result = compare(policy, interface, run, itertools.islice(of_space(policy), steps))
    assert set(sizes) >= {1, 7, 64}
    return result


def add(name, amount):
    def change(out, inputs):
        out[name].reshape(len(out[name]), -1)[-1] += amount

    return change


@pytest.mark.parametrize("name", ["discrete", "bits", "multi", "box", "mask", "dict", "parts", "masked parts"])
def test_the_policy_itself_agrees(name):
    result = compared(Policy(agent_of(spec_of(name))))
    assert result.holds
    assert (result.observations, result.other_actions) == (200, 0)


@pytest.mark.parametrize("name", ["discrete", "bits", "box"])
@pytest.mark.parametrize(
    ("output", "amount"), [("value", 3e-5), ("params", -3e-5), ("value", np.nan), ("params", np.inf)]
)
def test_a_number_that_is_off_is_found(name, output, amount):
    policy = Policy(agent_of(spec_of(name)))
    result = compared(policy, add(output, amount))
    assert not result.holds
    assert not result.largest[output] <= 1e-5


def test_another_memory_is_found():
    policy = Policy(agent_of(spec_of("mask"), recurrent="gru", recurrent_size=3))
    assert compared(policy).holds
    assert not compared(policy, add("next_memory", 3e-5)).holds


def test_large_numbers_may_differ_by_more():
    agent = agent_of(spec_of("discrete"))
    with torch.no_grad():
        agent.value[-1].bias += 1e6
    assert compared(Policy(agent), add("value", 1.0)).holds
    assert not compared(Policy(agent), add("value", 30.0)).holds


@pytest.mark.parametrize("part", ["push.0", "push.1", "go", "lamps", "far"])
def test_another_part_of_an_action_is_found(part):
    def change(out, inputs):
        out[f"action.{part}"].reshape(len(out["params"]), -1)[-1] += 1

    assert not compared(Policy(agent_of(spec_of("parts"))), change).holds


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("name", ["discrete from 3", "bits", "box"])
def test_another_action_is_found(name, sampled):
    def change(out, inputs):
        if bool(inputs["noise"].any()) == sampled:
            out["action"].reshape(len(out["action"]), -1)[-1] = 5 - out["action"].reshape(len(out["action"]), -1)[-1]

    assert not compared(Policy(agent_of(spec_of(name))), change).holds


def test_a_tie_that_rounding_decides_is_no_error():
    """Two choices with the same logits but for rounding: either is right, and it is counted."""
    agent = agent_of(spec_of("discrete"))
    with torch.no_grad():
        head = agent.policy[-1]
        head.weight[1], head.bias[1] = head.weight[0], head.bias[0]
        head.bias[:2] += 100
    policy = Policy(agent)

    def change(out, inputs):
        if not inputs["noise"].any():
            out["params"][:, 1] += 5e-4  # within 1e-5 of logits about 100
            out["action"][:] = 1

    result = compared(policy, change)
    assert result.holds
    assert result.ties == 200


@pytest.mark.parametrize("name", ["dict", "tuple", "mask", "unsigned", "image", "choice", "choices", "frames, dict"])
@pytest.mark.parametrize("count", [1, 3])
def test_rows_are_split_into_named_parts(name, count):
    frames = 2 if "frames" in name else 1
    policy = Policy(agent_of(spec_of(name.removeprefix("frames, "), frames=frames)))
    obs = observations(name, count)
    found = split_rows(policy.spec.observation, interface_of(policy), np.stack([policy.pack(each) for each in obs]))
    expected = named(obs)
    assert list(found) == list(expected)
    for key, each in expected.items():
        np.testing.assert_array_equal(found[key], each)
        assert found[key].dtype == each.dtype
        torch.from_numpy(found[key])  # refuses odd strides
