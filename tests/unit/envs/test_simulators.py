"""Functions of docs/batched.md that make simulators fit: what is learned from each transition is what happened."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import signal
import sys
from types import ModuleType

import gymnasium
import pytest
import torch

from fabric_ppo.api import evaluate, train
from fabric_ppo.config import Config
from tests.fixtures import simulators
from tests.fixtures.agents import random_agent
from tests.fixtures.configs import TINY
from tests.fixtures.launching import ROOT
from tests.fixtures.rollouts import rollouts
from tests.fixtures.simulators import ENDS, LIMIT

ARGUMENTS = {
    "gymnax": {},
    "brax": {"episode_length": LIMIT, "backend": "spring"},
    "playground": {"episode_length": LIMIT, "impl": "jax"},
    "maniskill": {},
    "isaaclab": {"device": "cpu"},
}
"""Arguments of each function, those that need a GPU left out."""
HIDDEN = ("isaaclab",)
"""Simulators that hide final observations."""
FLAGS = {"isaaclab": {"obs_keys": "policy"}}
CRITIC = {"critic_keys": "critic", "normalize_observations": True}
REAL = {
    "gymnax": ({"name": "MountainCar-v0"}, 200),
    "brax": ({"name": "reacher", "backend": "spring", "episode_length": 20}, 20),
    "mujoco_playground": ({"name": "CartpoleBalance", "impl": "jax", "episode_length": 20}, 20),
}
"""Packages, what is made with them, and its time limit."""


def my_sims():
    """The functions on the page, as a user's module."""
    section = (ROOT / "docs/batched.md").read_text().partition("\n## Simulators\n")[2]
    module = ModuleType("my_sims")
    for code in re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        exec(compile(code, "my_sims.py", "exec"), vars(module))
    return module


@pytest.fixture
def sims(monkeypatch):
    """The page's functions, to be found by their id."""
    module = my_sims()
    monkeypatch.setitem(sys.modules, "my_sims", module)
    return module


@pytest.fixture
def stand_in(sims, monkeypatch):
    """Put the stand-in of a simulator in its place, and return the id of its environments."""
    handlers = [(each, signal.getsignal(each)) for each in (signal.SIGINT, signal.SIGTERM)]
    known = dict(gymnasium.registry)

    def put(simulator):
        if simulator in ("gymnax", "brax", "playground"):
            pytest.importorskip("jax")
        for name in [name for name in sys.modules if name.partition(".")[0] in ("gymnax", "brax")]:
            monkeypatch.delitem(sys.modules, name)  # the real one
        for name, module in getattr(simulators, simulator)().items():
            monkeypatch.setitem(sys.modules, name, module)
        return f"my_sims:make_{simulator}"

    yield put
    for each, handler in handlers:
        signal.signal(each, handler)
    gymnasium.registry.clear()
    gymnasium.registry.update(known)


@pytest.mark.parametrize("simulator", ARGUMENTS)
def test_what_is_learned_from_a_transition_is_what_happened(simulator, stand_in, open_envs):
    """Steps are counted, and V of the true successor follows each that does not terminate, time limits included."""
    arguments, flags = json.dumps(ARGUMENTS[simulator]), FLAGS.get(simulator, {})
    envs = open_envs(stand_in(simulator), 6, backend="vector", env_kwargs=arguments, **flags)
    agent, ends = random_agent(envs.spec), {"terminated": 0, "truncated": 0}

    def value_of(*obs):
        row = torch.tensor([obs], dtype=torch.float32)
        return agent.values(row.view(torch.uint8) if envs.spec.observation.parts else row).item()

    expected_at = dict.fromkeys(range(6), 0)
    for rollout in rollouts(envs, agent, 12, 3):
        assert rollout.valid.all()
        assert (rollout.rewards == 1).all()
        obs = rollout.obs.view(torch.float32)
        for t, env in itertools.product(range(12), range(6)):
            (at, kind), name = obs[t, env].tolist(), ""
            assert at == expected_at[env]
            if kind == 1 and at + 1 == ENDS:
                name = "terminated"
            elif at + 1 == LIMIT:
                name = "truncated"
            assert {each for each in ends if getattr(rollout, each)[t, env]} == {name} - {""}
            hidden = name == "truncated" and simulator in HIDDEN
            if name != "terminated":
                successor = value_of(at, kind) if hidden else value_of(at + 1, kind)
                assert rollout.next_values[t, env].item() == pytest.approx(successor, abs=1e-5)
            expected_at[env] = 0 if name else at + 1
            if name:
                ends[name] += 1
    assert min(ends.values()) > 3


@pytest.mark.parametrize(("simulator", "more"), [*((each, {}) for each in ARGUMENTS), ("isaaclab", CRITIC)])
def test_a_run_trains_and_its_agent_is_tested(simulator, more, stand_in, tmp_path):
    flags = TINY | {"num_envs": 4, "total_timesteps": 128, "test_episodes": 0} | FLAGS.get(simulator, {}) | more
    arguments = json.dumps(ARGUMENTS[simulator])
    config = Config(env_id=stand_in(simulator), env_kwargs=arguments, log_dir=str(tmp_path), **flags)
    run = train(config, verbose=False)
    assert run.summary["env_steps"] == 128
    assert ENDS <= run.metrics["Rewards/rew_avg"][0] <= LIMIT
    played = evaluate(run, 8, seed=3)
    assert set(played.lengths) <= {ENDS, LIMIT}
    assert played.returns == played.lengths


def test_isaac_sim_leaves_signals_to_the_run(sims, stand_in):
    stand_in("isaaclab")
    before = signal.getsignal(signal.SIGTERM)
    sims.start_isaac_sim("cpu")
    assert signal.getsignal(signal.SIGTERM) is before


def test_how_often_a_task_of_maniskill_was_solved_can_be_logged(stand_in, tmp_path):
    flags = TINY | {"test_episodes": 0, "info_keys": "episode.success_once"}
    config = Config(env_id=stand_in("maniskill"), log_dir=str(tmp_path), **flags)
    (solved, *_) = train(config, verbose=False).metrics["Episode/episode.success_once"]
    assert 0 < solved < 1


needs = {name: pytest.mark.skipif(not importlib.util.find_spec(name), reason=f"needs {name}") for name in REAL}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("simulator", "arguments", "limit"),
    [pytest.param(name, *REAL[name], marks=needs[name]) for name in REAL],
)
def test_the_simulator_itself_is_cut_at_its_time_limit(simulator, arguments, limit, sims, open_envs):
    """Where the real one is installed: truncated and not terminated, after an observation like the one before it."""
    envs = open_envs(
        f"my_sims:make_{simulator.removeprefix('mujoco_')}", 4, backend="vector", env_kwargs=json.dumps(arguments)
    )
    agent = random_agent(envs.spec)
    (rollout,) = rollouts(envs, agent, limit + 1, 1)
    ended = rollout.terminated | rollout.truncated
    assert rollout.truncated[limit - 1].all()
    assert ended.sum() == 4
    # an observation of the next episode would be worth something else
    following, other = rollout.next_values[limit - 1], rollout.values[limit]
    assert ((following - rollout.values[limit - 1]).abs() < (following - other).abs()).all()
