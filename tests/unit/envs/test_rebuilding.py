"""Episodes in progress, brought back in new environments: they go on as if nothing had happened, or say why not."""

from __future__ import annotations

import multiprocessing
import os
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.envs.action_log import ActionLog
from fabric_ppo.envs.contract import PastEpisode
from fabric_ppo.envs.make import make_envs
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from fabric_ppo.run.contents import action_log, past_episodes
from fabric_ppo.run.optimizer_state import OptimizerState
from fabric_ppo.run.snapshot import Snapshot
from fabric_ppo.seeding import episode_seed
from tests.fixtures import unrepeatable_envs
from tests.fixtures.envs import BACKENDS
from tests.fixtures.toy_envs import ACTIONS, OBSERVATIONS, encode, toy_env

SEED = 3


COLUMNS = ("obs", "actions", "log_probs", "values", "rewards", "terminated", "truncated", "valid", "next_values")


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def open_envs(backend):
    opened = []

    def open_(env_id, num_envs, num_steps=16, **flags):
        config = Config(env_id=env_id, env_backend=backend, num_envs=num_envs, num_steps=num_steps, seed=SEED, **flags)
        opened.append(make_envs(config, 0, 1))
        return config, opened[-1]

    yield open_
    for envs in opened:
        envs.close()
    assert not multiprocessing.active_children()


def saved(snapshot, log) -> Checkpoint:
    """A checkpoint, through its file, of environments only."""
    whole = Snapshot({}, OptimizerState({}, {}), {}, snapshot, log.view(), {})
    return Checkpoint.from_bytes(whole.to_checkpoint({}).to_bytes())


def assert_goes_on(open_envs, env_id, num_envs, num_steps, num_rollouts):
    """The next two rollouts after each of the first ones, in new environments from a checkpoint, bit for bit.

    Returns:
        The episodes' numbers and lengths at the last checkpoint.
    """
    config, envs = open_envs(env_id, num_envs, num_steps)
    agent = make_agent(envs.spec, config)
    buffer = RolloutBuffer(envs, agent, num_steps)
    buffer.start()
    log = ActionLog.empty(num_envs, buffer.actions.shape[2:], buffer.log_dtype)
    checkpoints, kept = [], []
    for update in range(num_rollouts + 2):
        rollout = collect(agent, buffer, SEED, update)
        log.append(rollout.snapshot.actions, rollout.snapshot.ended)
        checkpoints.append(saved(rollout.snapshot, log))
        kept.append(copied(rollout))
    for update in (0, num_rollouts - 1):
        _, again = open_envs(env_id, num_envs, num_steps)
        resumed = RolloutBuffer(again, agent, num_steps)
        past = past_episodes(checkpoints[update], 0, num_envs, again.spec.action)
        assert resumed.rebuild(past) == [""] * num_envs
        log = action_log(checkpoints[update], np.zeros(num_envs, bool))
        for later in (update + 1, update + 2):
            rollout = collect(agent, resumed, SEED, later)
            assert copied(rollout) == kept[later]
            log.append(rollout.snapshot.actions, rollout.snapshot.ended)
            assert saved(rollout.snapshot, log).to_bytes() == checkpoints[later].to_bytes()
    return log.numbers, log.view().lengths


def copied(rollout):
    """What a rollout holds, as values that compare; it is overwritten by the next one."""
    columns = [getattr(rollout, name).contiguous().view(-1).view(torch.uint8).tolist() for name in COLUMNS]
    return columns, rollout.episodes, rollout.stats.env_steps


@pytest.mark.parametrize(
    ("env_id", "num_steps"),
    [("CartPole-v1", 13), ("LunarLander-v3", 60), ("Pendulum-v1", 70), ("BipedalWalker-v3", 50)],
)
def test_episodes_go_on_as_if_nothing_had_happened(open_envs, env_id, num_steps):
    numbers, lengths = assert_goes_on(open_envs, env_id, 2, num_steps, 4)
    assert numbers.max() >= 1
    assert lengths.max() > 1


@pytest.mark.parametrize("action", list(ACTIONS))
def test_actions_of_every_kind_are_repeated(open_envs, action):
    """The toy's rewards tell its actions apart, entry by entry; it refuses what is not in its space."""
    numbers, _ = assert_goes_on(open_envs, toy_env(length=7, action=action), 3, 5, 3)
    assert numbers.min() >= 2


@pytest.mark.parametrize("observation", list(OBSERVATIONS))
@pytest.mark.parametrize("ends", ["truncated", "both"])
def test_observations_of_every_kind_are_compared(open_envs, observation, ends):
    env_id = toy_env(length=7, observation=observation, ends=ends, reuses_memory=observation != "discrete")
    assert_goes_on(open_envs, env_id, 2, 5, 3)


LENGTH = 6


def toy_past(number, actions, env=0, ret=None, total_envs=2, kind="float32"):
    """A Toy's episode after some actions, from its definition."""
    obs = np.asarray(encode(kind, episode_seed(SEED, env, number, total_envs), len(actions)))
    ret = sum(100.0 * step + action for step, action in enumerate(actions)) if ret is None else ret
    return PastEpisode(number, np.array(actions, np.int64), obs, ret, len(actions))


def rebuild(envs, past):
    obs = np.full((envs.num_envs, *envs.spec.observation.shape), 77, envs.spec.observation.dtype)
    failed = envs.rebuild(past, obs)
    return failed, obs


def step(envs, actions):
    """One step: observations, rewards, terminated, truncated."""
    n = envs.num_envs
    out = SimpleNamespace(
        obs=np.zeros((n, *envs.spec.observation.shape), envs.spec.observation.dtype),
        rewards=np.zeros(n, np.float32),
        terminated=np.zeros(n, bool),
        truncated=np.zeros(n, bool),
    )
    envs.step(np.asarray(actions), out.obs, out.rewards, out.terminated, out.truncated, np.zeros(n, bool))
    return out


WRONG = {
    "its observation differs after the same actions": {"number": 4},
    "its rewards differ after the same actions": {"ret": 3.5},
    "its episode was too long to keep its actions": {"actions": None},
}


@pytest.mark.parametrize("why", list(WRONG))
def test_an_episode_that_cannot_be_brought_back_says_why_and_the_next_begins(open_envs, why):
    """The other environment's is brought back all the same."""
    _, envs = open_envs(toy_env(length=LENGTH), 2)
    good, bad = toy_past(3, [0, 1, 2], env=0), toy_past(5, [2, 2, 1, 0], env=1)
    changes = WRONG[why]
    bad = PastEpisode(**{name: getattr(bad, name) for name in ("actions", "obs", "ret", "length", "number")} | changes)
    failed, obs = rebuild(envs, [good, bad])
    assert failed == ["", why]
    np.testing.assert_array_equal(obs[0], good.obs)
    np.testing.assert_array_equal(obs[1], encode("float32", episode_seed(SEED, 1, bad.number + 1, 2), 0))
    got = step(envs, [1, 2])
    assert got.rewards.tolist() == [301.0, 2.0]  # steps 3 and 0 of their episodes


def test_an_episode_that_ends_early_or_fails_says_so(open_envs):
    env_id = toy_env(length=LENGTH, fault="raise", at=2, only_seed=episode_seed(SEED, 1, 0, 2))
    _, envs = open_envs(env_id, 2)
    failed, obs = rebuild(envs, [toy_past(1, [0] * (LENGTH + 2)), toy_past(0, [1] * 4, env=1)])
    assert failed[0] == "its episode ended 2 steps early"
    assert "step raised ToyError" in failed[1]
    for env, number in ((0, 2), (1, 1)):
        np.testing.assert_array_equal(obs[env], encode("float32", episode_seed(SEED, env, number, 2), 0))


def test_a_rebuilt_return_may_differ_in_its_last_bits_only(open_envs):
    """It was summed rollout by rollout: another order."""
    _, envs = open_envs(toy_env(length=LENGTH), 2)
    exact = toy_past(0, [1, 2, 0]).ret
    failed, _ = rebuild(envs, [toy_past(0, [1, 2, 0], ret=exact * (1 + 1e-12)), toy_past(0, [1], env=1)])
    assert failed == ["", ""]
    failed, _ = rebuild(envs, [toy_past(0, [1, 2, 0], ret=exact * (1 + 1e-6)), toy_past(0, [1], env=1)])
    assert failed == ["its rewards differ after the same actions", ""]


def test_what_outgrew_the_log_begins_anew(open_envs):
    """From a real log whose limit the first environment's endless episode has outgrown."""
    config, envs = open_envs(toy_env(length=0), 1, num_steps=8)
    agent = make_agent(envs.spec, config)
    buffer = RolloutBuffer(envs, agent, 8)
    log = ActionLog.empty(1, (), buffer.log_dtype, limit=20)
    for update in range(4):
        rollout = collect(agent, buffer, SEED, update)
        log.append(rollout.snapshot.actions, rollout.snapshot.ended)
    past = past_episodes(saved(rollout.snapshot, log), 0, 1, envs.spec.action)
    assert (past[0].actions, past[0].length) == (None, 32)
    _, again = open_envs(toy_env(length=0), 1, num_steps=8)
    assert RolloutBuffer(again, agent, 8).rebuild(past) == ["its episode was too long to keep its actions"]


@pytest.mark.parametrize(
    ("env_id", "why"),
    [
        ("DriftsObs", "its observation differs after the same actions"),
        ("DriftsReward", "its rewards differ after the same actions"),
        ("RunningRewards", "its rewards differ after the same actions"),
        ("RunningObservations", "its observation differs after the same actions"),
    ],
)
def test_what_does_not_follow_from_seed_and_actions_is_noticed(open_envs, env_id, why):
    """A wrapper with running statistics repeats its first episode, but not a later one."""
    env_id = f"{unrepeatable_envs.__name__}:{env_id}-v0"
    config, envs = open_envs(env_id, 1, num_steps=30)
    agent = make_agent(envs.spec, config)
    buffer = RolloutBuffer(envs, agent, 30)
    log = ActionLog.empty(1, (), buffer.log_dtype)
    for update in range(3):
        rollout = collect(agent, buffer, SEED, update)
        log.append(rollout.snapshot.actions, rollout.snapshot.ended)
    _, again = open_envs(env_id, 1, num_steps=30)
    assert log.view().lengths[0] > 0
    past = past_episodes(saved(rollout.snapshot, log), 0, 1, again.spec.action)
    assert RolloutBuffer(again, agent, 30).rebuild(past) == [why]


class Stateful(gymnasium.Env):
    """Its observations come from the operating system, but it can be put back; counts its steps over episodes."""

    observation_space = gymnasium.spaces.Box(0, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.place, self.steps_of_all_episodes = 0.0, 0

    def reset(self, *, seed=None, options=None):
        self.place = float(int.from_bytes(os.urandom(2), "little"))
        return self._observe(), {}

    def step(self, action):
        self.place += 1 + action
        self.steps_of_all_episodes += 1
        return self._observe(), self.place, False, False, {}

    def _observe(self):
        return np.array([self.place, self.steps_of_all_episodes], np.float32)

    def get_state(self):
        return np.float64(self.place).tobytes()

    def set_state(self, state):
        self.place = float(np.frombuffer(state, np.float64)[0])


gymnasium.register("Stateful-v0", Stateful, max_episode_steps=20)


def test_an_environment_that_offers_its_state_is_put_back_without_a_replay(open_envs):
    """It goes on where it was, and its time limit strikes when it would have."""
    config, envs = open_envs("Stateful-v0", 2, num_steps=13)
    agent = make_agent(envs.spec, config)
    buffer = RolloutBuffer(envs, agent, 13)
    rollout = collect(agent, buffer, SEED, 0)
    log = ActionLog.empty(2, (), buffer.log_dtype, limit=0)  # as if its actions were not kept
    log.append(rollout.snapshot.actions, rollout.snapshot.ended)
    assert len(rollout.snapshot.states) == 2
    place = rollout.snapshot.obs[:, 0].copy()
    past = past_episodes(saved(rollout.snapshot, log), 0, 2, envs.spec.action)
    assert all(episode.actions is None for episode in past)

    _, again = open_envs("Stateful-v0", 2, num_steps=13)
    resumed = RolloutBuffer(again, agent, 13)
    assert resumed.rebuild(past) == ["", ""]
    np.testing.assert_array_equal(resumed.obs[-1], rollout.snapshot.obs)
    for t in range(14, 21):
        got = step(again, [0, 1])
        place += [1, 2]
        if t < 20:
            np.testing.assert_array_equal(got.obs[:, 0], place)
        np.testing.assert_array_equal(got.rewards, place)
        assert got.truncated.tolist() == [t == 20] * 2
        assert got.obs[:, 1].tolist() == [t - 13] * 2  # steps that this environment has taken: none was repeated


class HalfStateful(Stateful):
    """Offers a state that is no bytes."""

    def get_state(self):
        return {"place": self.place}


class OtherState(Stateful):
    """Has methods of these names that are something else, as MuJoCo's environments have a `set_state`."""

    def get_state(self, name):
        return name

    def set_state(self, qpos, qvel):
        pass


class Unsettable(Stateful):
    """Gives a state that it does not take back."""

    def set_state(self, state):
        raise KeyError("which\nkey")


for kind in (HalfStateful, OtherState, Unsettable):
    gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=20)


def test_a_state_that_is_not_taken_back_begins_a_new_episode(open_envs):
    _, envs = open_envs("Unsettable-v0", 2)
    past = PastEpisode(3, np.zeros(1, np.int64), np.zeros(2, np.float32), 0.0, 1, state=b"12345678")
    failed, obs = rebuild(envs, [past, past])
    assert failed == ["set_state raised KeyError: 'which\\nkey'"] * 2
    assert (obs != past.obs).any(1).all()


@pytest.mark.parametrize("env_id", ["HalfStateful-v0", "OtherState-v0"])
def test_what_is_not_bytes_is_no_state(open_envs, env_id):
    _, envs = open_envs(env_id, 2)
    envs.reset(np.zeros((2, 2), np.float32))
    assert envs.states() == []
    assert envs.states() == []
