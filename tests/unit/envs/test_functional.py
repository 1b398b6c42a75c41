"""Functional environments: their own episodes, seeds and states, and nothing else."""

from __future__ import annotations

import re

import gymnasium
import numpy as np
import pytest
import torch

from fabric_ppo.config import Config
from fabric_ppo.envs.actions import tensor_action_converter
from fabric_ppo.envs.contract import EnvSettings, PastEpisode
from fabric_ppo.envs.functional import FunctionalEnv, FunctionalEnvs
from fabric_ppo.envs.make import make_envs
from fabric_ppo.envs.tensor_contract import StepOutputs
from fabric_ppo.envs.tensor_seeds import seeded_uniforms
from fabric_ppo.process.errors import ConfigError, EnvironmentFault
from fabric_ppo.seeding import episode_seed, evaluation_seed
from tests.fixtures.agents import random_agent
from tests.fixtures.envs import SEED
from tests.fixtures.functional import Steered
from tests.fixtures.rollouts import rollouts


class Walk(FunctionalEnv):
    """A walk with a random part, which ends beyond 3; its state is a dictionary with numbers of two types."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
    action_space = gymnasium.spaces.Discrete(3)
    max_episode_steps = 7

    def initial(self, seeds):
        state = {"place": seeded_uniforms(seeds, 1)[:, 0].float(), "visits": torch.zeros_like(seeds)}
        return state, self.observed(state, seeds)

    def transition(self, state, actions, seeds, step):
        noise = seeded_uniforms(seeds, 1, step + 1)[:, 0].float()
        state = {"place": state["place"] + actions - 1 + noise / 2, "visits": state["visits"] + 1}
        return state, self.observed(state, seeds), state["place"], state["place"].abs() > 3

    def observed(self, state, seeds):
        return torch.stack([state["place"], state["visits"].float(), (seeds % 4096).float()], -1)


def make(num_envs=4, rank=0, num_ranks=1):
    settings = EnvSettings("walk", SEED, num_envs, rank * num_envs, num_ranks * num_envs)
    return FunctionalEnvs(Walk(), settings)


def test_actions_of_parts_are_tensors_in_their_places():
    """Two steps by hand: one way and back by half, where the bit says so; the third stays."""
    settings = EnvSettings("steered", SEED, 3, 0, 3)
    envs = FunctionalEnvs(Steered(), settings)
    out = StepOutputs(torch.zeros(3, 1), torch.zeros(3), *torch.zeros(3, 3, dtype=torch.bool), torch.zeros(3, 1))
    envs.reset(out.obs)
    first, convert = out.obs.clone(), tensor_action_converter(envs.spec.action)
    assert [path for path, _ in envs.spec.action.parts] == [("way",), ("how", 0), ("how", 1)]
    envs.step(convert(torch.tensor([[1.0, 0.5, 1], [0, 9.0, 1], [1, 1.0, 0]])), out)
    assert (out.obs - first).flatten().tolist() == pytest.approx([0.5, -1, 0])
    envs.step(convert(torch.tensor([[0.0, 0.25, 1], [1, 0.5, 1], [0, -3.0, 1]])), out)
    assert (out.obs - first).flatten().tolist() == pytest.approx([0.25, -0.5, 0])


def outputs_of(n):
    """Outputs that hold nonsense."""
    flags = [torch.ones(n, dtype=torch.bool) for _ in range(3)]
    return StepOutputs(torch.full((n, 3), 77.0), torch.full((n,), 77.0), *flags, torch.full((n, 3), 77.0))


def play(envs, num_steps, first=0):
    """Outputs of some steps with actions that depend on step and environment."""
    played = []
    for step in range(first, first + num_steps):
        out = outputs_of(envs.num_envs)
        actions = (torch.arange(envs.num_envs) + envs.first_env + step) % 3
        envs.step(actions, out)
        played.append(out)
    return played


def start(envs):
    obs = torch.full((envs.num_envs, 3), 77.0)
    envs.reset(obs)
    return obs


def test_each_environment_plays_as_if_it_were_alone():
    """Against the functions themselves, called for one copy: seeds by `seeding`, limits and ends by definition."""
    envs, walk = make(), Walk()
    first, played = start(envs), play(envs, 25)
    num_ended = 0
    for env in range(envs.num_envs):
        number, steps = 0, 0
        seed = torch.tensor([episode_seed(SEED, env, 0, envs.num_envs)])
        state, obs = walk.initial(seed)
        assert torch.equal(first[env], obs[0])
        for step, out in enumerate(played):
            state, obs, reward, ended = walk.transition(
                state, torch.tensor([(env + step) % 3]), seed, torch.tensor([steps])
            )
            steps += 1
            assert out.rewards[env] == reward
            assert out.terminated[env] == ended
            assert out.truncated[env] == (steps == 7)
            assert out.valid[env]
            if ended or steps == 7:
                assert torch.equal(out.final_obs[env], obs[0])
                number, steps, num_ended = number + 1, 0, num_ended + 1
                seed = torch.tensor([episode_seed(SEED, env, number, envs.num_envs)])
                state, obs = walk.initial(seed)
            assert torch.equal(out.obs[env], obs[0])
    assert num_ended > 8


def test_two_ranks_play_what_one_does():
    """H2: an environment is where its global id says, not on which rank."""
    whole, parts = make(6), [make(3, rank, 2) for rank in range(2)]
    assert torch.equal(start(whole), torch.cat([start(part) for part in parts]))
    for out, *own in zip(play(whole, 12), *(play(part, 12) for part in parts), strict=True):
        for name in ("obs", "rewards", "terminated", "truncated"):
            assert torch.equal(getattr(out, name), torch.cat([getattr(each, name) for each in own]))


def test_the_way_that_waits_for_no_device_gives_the_same():
    """On a GPU all copies begin in each step, and those that ended take it: the same bits as the short way."""
    some, every = make(), make()
    every._begin_some = lambda state, out, ended: every._begin_where(  # type: ignore[method-assign]
        state, out, torch.zeros(every.num_envs, dtype=torch.bool).index_fill(0, ended, True)
    )
    assert torch.equal(start(some), start(every))
    for one, other in zip(play(some, 20), play(every, 20), strict=True):
        ended = one.terminated | one.truncated
        assert torch.equal(one.final_obs[ended], other.final_obs[ended])
        assert all(torch.equal(a, b) for a, b in zip(one[:-1], other[:-1], strict=True))


@pytest.mark.parametrize("until", [1, 5, 9])
def test_a_state_brings_an_episode_back(until):
    """Environments rebuilt from states go on as those do that were never away."""
    envs, again = make(), make()
    start(envs)
    played = play(envs, until)
    ended = torch.stack([out.terminated | out.truncated for out in played])
    numbers, last = ended.sum(0), [int(column.nonzero().max() + 1) if column.any() else 0 for column in ended.T]
    past = [
        PastEpisode(int(numbers[env]), None, played[-1].obs[env].numpy(), 0.0, until - last[env], state=state)
        for env, state in enumerate(envs.states())
    ]
    obs = torch.full((4, 3), 77.0)
    assert again.rebuild(past, obs) == [""] * 4
    assert torch.equal(obs, played[-1].obs)
    for one, other in zip(play(envs, 15, until), play(again, 15, until), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:-1], other[:-1], strict=True))


def test_a_state_of_another_size_starts_the_next_episode():
    envs = make(2)
    start(envs)
    good, _ = envs.states()
    past = [PastEpisode(4, None, np.zeros(3, np.float32), 0.0, 3, state=state) for state in (good, good[:-1])]
    obs = torch.full((2, 3), 77.0)
    assert make(2).rebuild(past, obs) == ["", "its state is not that of this environment"]
    assert obs[0].tolist() == [0, 0, 0]
    _, first = Walk().initial(torch.tensor([episode_seed(SEED, 1, 5, 2)]))
    assert torch.equal(obs[1], first[0])


def test_a_test_begins_with_the_seeds_that_it_is_given():
    envs, seeds = make(3), [evaluation_seed(5, episode) for episode in range(3)]
    obs = torch.full((3, 3), 77.0)
    envs.begin(seeds, obs)
    assert torch.equal(obs, Walk().initial(torch.tensor(seeds))[1])


def test_the_id_alone_chooses_the_backend():
    from fabric_ppo.run.resolve import resolve

    config = resolve(Config(env_id="tensor/CartPole-v1", num_envs=3))
    assert config.env_backend == "vector"
    envs = make_envs(config, 0, 1)
    assert isinstance(envs, FunctionalEnvs)
    assert envs.num_envs == 3


@pytest.mark.parametrize(
    ("name", "result", "said"),
    [
        ("transition", lambda *args: 1 / 0, "transition raised ZeroDivisionError: division by zero"),
        (
            "transition",
            lambda *args: None,
            "transition returned no tuple \\(state, observations, rewards, terminated\\)",
        ),
        ("initial", lambda *args: (1, 2, 3), "initial returned no tuple \\(state, observations\\)"),
        ("initial", lambda *args: ({}, [1]), r"initial returned observations of shape \(1,\); \(4, 3\) is expected"),
        (
            "transition",
            lambda *args: ({}, torch.zeros(4, 2), torch.zeros(4), torch.zeros(4)),
            r"transition returned observations of shape \(4, 2\); \(4, 3\) is expected",
        ),
        (
            "transition",
            lambda *args: ({}, torch.zeros(4, 3), torch.tensor(1.0), torch.zeros(4)),
            r"transition returned rewards of shape \(\) on cpu; a tensor \(4,\) on cpu is expected",
        ),
        (
            "transition",
            lambda *args: ({}, torch.zeros(4, 3), torch.zeros(4), torch.zeros(4, device="meta")),
            r"transition returned terminated of shape \(4,\) on meta; a tensor \(4,\) on cpu is expected",
        ),
    ],
)
def test_what_a_function_returns_is_checked(monkeypatch, name, result, said):
    monkeypatch.setattr(Walk, name, result)
    # what is wrong with a first observation is found before anything starts
    with pytest.raises((EnvironmentFault, ConfigError), match=f"^(--env-id )?walk: {said}"):  # noqa: PT012
        envs = make()
        start(envs)
        play(envs, 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state | {"place": state["place"].double()}, "{place: float64[4], visits: int64[4]}"),
        (lambda state: {"place": state["place"]}, "{place: float32[4]}"),
        (lambda state: {"place": state["place"], "seen": state["visits"]}, "{place: float32[4], seen: int64[4]}"),
        (lambda state: state | {"visits": state["visits"][:, None]}, "{place: float32[4], visits: int64[4, 1]}"),
        (lambda state: tuple(state.values()), "(float32[4], int64[4])"),
    ],
)
def test_a_state_that_is_not_like_the_one_before_is_refused(monkeypatch, change, told):
    transition = Walk.transition

    def changed(self, *args):
        state, *rest = transition(self, *args)
        return change(state), *rest

    monkeypatch.setattr(Walk, "transition", changed)
    envs = make()
    start(envs)
    expected = f"walk: transition returned a state {told}; {{place: float32[4], visits: int64[4]}} is expected"
    with pytest.raises(EnvironmentFault, match=f"^{re.escape(expected)}, as of initial$"):
        play(envs, 1)


class Bandit(FunctionalEnv):
    """Two arms, one step, and no state."""

    observation_space = gymnasium.spaces.Discrete(1)
    action_space = gymnasium.spaces.Discrete(2)

    def initial(self, seeds):
        return (), torch.zeros_like(seeds)

    def transition(self, state, actions, seeds, step):
        return (), torch.zeros_like(seeds), actions.float(), torch.ones_like(seeds, dtype=torch.bool)


def test_an_environment_may_have_no_state():
    envs = FunctionalEnvs(Bandit(), EnvSettings("bandit", SEED, 3, 0, 3))
    obs = torch.full((3,), 77)
    envs.reset(obs)
    assert obs.tolist() == [0, 0, 0]
    past = [PastEpisode(5, None, np.zeros((), np.int64), 0.0, 0)] * 3
    assert envs.rebuild(past, obs) == [""] * 3
    flags = [torch.zeros(3, dtype=torch.bool) for _ in range(3)]
    out = StepOutputs(obs, torch.zeros(3), *flags, torch.zeros_like(obs))
    envs.step(torch.tensor([0, 1, 1]), out)
    assert out.rewards.tolist() == [0, 1, 1]
    assert out.terminated.all()


def test_the_order_of_a_dictionary_does_not_matter(monkeypatch):
    """Neither for the steps nor for the states in checkpoints: a function may build its dictionary in another order."""
    expected, again = make(), make()
    start(expected)
    in_order = play(expected, 9)
    transition = Walk.transition

    def turned(self, *args):
        state, *rest = transition(self, *args)
        return dict(reversed(state.items())), *rest

    monkeypatch.setattr(Walk, "transition", turned)
    envs = make()
    start(envs)
    for one, other in zip(in_order, play(envs, 9), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:-1], other[:-1], strict=True))
    assert envs.states() == expected.states()
    steps = [2] * 4
    past = [
        PastEpisode(1, None, in_order[-1].obs[k].numpy(), 0.0, steps[k], state=state)
        for k, state in enumerate(envs.states())
    ]
    assert again.rebuild(past, torch.zeros(4, 3)) == [""] * 4
    assert again.states() == expected.states()


@pytest.mark.parametrize("odd", [3, np.zeros(4), torch.zeros(()), torch.zeros(3)])
def test_a_state_without_a_row_for_each_copy_is_refused(monkeypatch, odd):
    monkeypatch.setattr(Walk, "initial", lambda self, seeds: ({"place": odd}, torch.zeros(len(seeds), 3)))
    expected = r"^--env-id walk: initial returned a state with (a|an|None) ?.*; tensors of 4 rows on cpu"
    with pytest.raises(ConfigError, match=expected):
        make()


@pytest.mark.parametrize("limit", [0, -4, 2.5, "7", True])
def test_a_limit_that_is_none_is_refused(monkeypatch, limit):
    monkeypatch.setattr(Walk, "max_episode_steps", limit)
    with pytest.raises(ConfigError, match=r"^--env-id walk: its max_episode_steps is .*; a whole number from 1 up, or"):
        make()


def test_a_state_keeps_no_graph():
    """An environment with parameters that learn elsewhere would else keep every step since the beginning."""
    weight = torch.ones((), requires_grad=True)

    class Weighed(Walk):
        def transition(self, state, actions, seeds, step):
            state, obs, rewards, ended = super().transition(state, actions, seeds, step)
            return state | {"place": state["place"] * weight}, obs * weight, rewards * weight, ended

    envs = FunctionalEnvs(Weighed(), EnvSettings("walk", SEED, 4, 0, 4))
    start(envs)
    for out, _ in zip(play(envs, 9), range(9), strict=True):
        assert not out.obs.requires_grad
    assert not envs._state["place"].requires_grad


def test_a_render_that_takes_no_state_is_refused(monkeypatch):
    monkeypatch.setattr(Walk, "render", lambda self: None)
    expected = r"^--env-id walk: its render cannot be called with a state \(.*\); render\(self, state\) is expected$"
    with pytest.raises(ConfigError, match=expected):
        make()


def test_a_first_observation_that_is_not_finite_is_named(monkeypatch):
    """It is what the agent acts on first: nothing of the update that follows is to blame."""
    initial = Walk.initial

    def broken(self, seeds):
        state, obs = initial(self, seeds)
        obs[2:3] = torch.nan
        return state, obs

    monkeypatch.setattr(Walk, "initial", broken)
    envs = make()
    with pytest.raises(EnvironmentFault, match=r"^walk environment 2: reset gave observation nan in entry \[0\]"):
        list(rollouts(envs, random_agent(envs.spec), 4, 1))
