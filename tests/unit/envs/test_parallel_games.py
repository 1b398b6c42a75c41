"""Games of several agents: agents are rows, those that are not there are no transitions."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from fabric_ppo.envs.actions import tensor_action_converter
from fabric_ppo.envs.batched import make_tensor_envs
from fabric_ppo.envs.contract import EnvSettings, PastEpisode
from fabric_ppo.envs.parallel_games import ParallelGames
from fabric_ppo.envs.tensor_contract import StepOutputs
from fabric_ppo.process.errors import ConfigError, EnvironmentFault
from fabric_ppo.seeding import episode_seed
from tests.fixtures.agents import random_agent
from tests.fixtures.envs import SEED
from tests.fixtures.games import Relay
from tests.fixtures.rollouts import rollouts


def make(num_envs=6, kind=Relay, **options):
    made = []

    def create():
        made.append(kind(**options))
        return made[-1]

    envs = ParallelGames(create(), create, EnvSettings("relay", SEED, num_envs, 0, num_envs))
    return envs, made


def blank_outputs(envs):
    n, space = envs.num_envs, envs.spec.observation
    obs = torch.from_numpy(np.zeros((n, *space.shape), space.dtype))
    flags = [torch.ones(n, dtype=torch.bool) for _ in range(3)]
    return StepOutputs(obs, torch.full((n,), 77.0), *flags, torch.zeros_like(obs))


def play(envs, steps):
    """Outputs of some steps in which every agent does 2."""
    first = blank_outputs(envs).obs
    envs.reset(first)
    played = []
    for _ in range(steps):
        out = blank_outputs(envs)
        envs.step(torch.full((envs.num_envs,), 2), out)
        played.append((out, envs.over(out)))
    return first, played


def test_nested_actions_are_each_agents_own():
    space = gymnasium.spaces.Dict(a=gymnasium.spaces.Discrete(3, start=1), b=gymnasium.spaces.Box(-1, 1, ()))
    taken = []

    class Parts(Relay):
        def action_space(self, agent):
            return space

        def step(self, actions):
            taken.append(actions)
            return super().step({agent: 0 for agent in actions})

    envs, _ = make(3, Parts)
    envs.reset(blank_outputs(envs).obs)
    stored = torch.tensor([[0.0, 0.5], [2.0, -4.0], [1.0, 0.0]])
    envs.step(tensor_action_converter(envs.spec.action)(stored), blank_outputs(envs))
    assert [space.contains(each) for each in taken[0].values()] == [True, True]
    assert {agent: (int(each["a"]), float(each["b"])) for agent, each in taken[0].items()} == {
        "a": (1, 0.5),
        "b": (3, -1.0),
    }


def test_rows_are_what_happened_to_each_agent():
    """Two games of three agents, by hand: c joins after one step, b dies in the second, all ends in the fourth."""
    envs, _ = make()
    first, played = play(envs, 5)
    assert first.tolist() == [[0, 0], [1, 0], [0, 0]] * 2
    table = [  # valid, terminated, truncated, rewards, next observations, of a, b, c
        ([1, 1, 0], [0, 0, 0], [0, 0, 0], [2, 3, 0], [[0, 1], [1, 1], [2, 1]]),
        ([1, 1, 1], [0, 1, 0], [0, 0, 0], [2, 3, 4], [[0, 2], [0, 0], [2, 2]]),
        ([1, 0, 1], [0, 0, 0], [0, 0, 0], [2, 0, 4], [[0, 3], [0, 0], [2, 3]]),
        ([1, 0, 1], [1, 0, 0], [0, 0, 1], [2, 0, 4], [[0, 0], [1, 0], [0, 0]]),
        ([1, 1, 0], [0, 0, 0], [0, 0, 0], [2, 3, 0], [[0, 1], [1, 1], [2, 1]]),
    ]
    for (out, over), (valid, terminated, truncated, rewards, obs) in zip(played, table, strict=True):
        columns = (out.valid, out.terminated, out.truncated, out.rewards, out.obs)
        for column, expected in zip(columns, (valid, terminated, truncated, rewards, obs), strict=True):
            assert column.tolist() == expected * 2
        assert over.tolist() == [terminated[0] == 1] * 6
    assert played[1][0].final_obs[1].tolist() == [1, 2]
    assert played[3][0].final_obs[[0, 2]].tolist() == [[0, 4], [2, 4]]


def test_each_game_starts_from_a_seed_of_its_own():
    envs, games = make()
    play(envs, 9)
    for index, game in enumerate(games):
        expected = [episode_seed(SEED, 3 * index, number, 6) for number in range(3)]
        assert game.seeds[-3:] == expected


def test_a_rollout_values_the_true_successors():
    """Also of c, which is broken off, and never of the next game; its episodes are those of each agent."""
    envs, _ = make()
    agent = random_agent(envs.spec)
    for rollout in rollouts(envs, agent, 8, 2):
        lengths = sorted((episode.env % 3, episode.length) for episode in rollout.episodes)
        assert set(lengths) == {(0, 4), (1, 2), (2, 3)}
        for t in range(8):
            for env in range(6):
                if not rollout.valid[t, env] or rollout.terminated[t, env]:
                    continue
                successor = rollout.obs[t, env] + torch.tensor([0.0, 1.0])
                expected = agent.values(successor[None]).item()
                assert rollout.next_values[t, env].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("masks", ["observation", "info"])
def test_masks_hold_for_each_agent(masks):
    """Agent a may do 1 only; agents that are not there have something to choose as well."""
    envs, _ = make(masks=masks)
    agent = random_agent(envs.spec)
    (rollout,) = rollouts(envs, agent, 16, 1)
    actions = rollout.actions[rollout.valid]
    is_a = torch.arange(6).expand(16, 6)[rollout.valid] % 3 == 0
    assert (actions[is_a] == 1).all()
    assert len(actions[~is_a].unique()) == 3
    assert rollout.log_probs.isfinite().all()


def test_a_number_of_rows_that_makes_no_whole_games_is_refused():
    with pytest.raises(ConfigError, match=r"^--num-envs 4: a multiple of 3 is expected, the agents of relay$"):
        make(4)


def test_agents_with_different_spaces_are_refused():
    class Uneven(Relay):
        def action_space(self, agent):
            return gymnasium.spaces.Discrete(3 if agent == "a" else 2)

    expected = r"^--env-id relay: the action_space of b is Discrete\(2\), and that of a Discrete\(3\); one policy acts"
    with pytest.raises(ConfigError, match=expected):
        make(kind=Uneven)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        (0, {"a": np.zeros(3, np.float32)}, r"step returned for a .*shape \(3,\)"),
        (1, {"a": np.nan, "b": 0.0}, "step returned for a .*nan"),
        (1, {"a": 0.0}, "step returned no reward for b, which has acted"),
        (0, {"c": None}, "step returned for c "),
        (2, {"a": "no", "b": False}, "step returned for a .*terminated"),
        (2, {"a": True, "b": False, "c": False}, "step ended the part of a, which is still among `agents`"),
    ],
)
def test_what_cannot_be_read_is_named_by_agent_and_step(part, value, said):
    class Odd(Relay):
        def step(self, actions):
            answer = list(super().step(actions))
            answer[part] = answer[part] | value if part != 1 else value
            return tuple(answer)

    envs, _ = make(3, kind=Odd)
    with pytest.raises(EnvironmentFault, match=rf"^relay: game of seed \d+, step 1: {said}"):
        play(envs, 1)


def test_an_error_of_a_game_is_a_fault():
    class Breaking(Relay):
        def step(self, actions):
            raise RuntimeError("the ball is lost")

    envs, _ = make(3, kind=Breaking)
    with pytest.raises(EnvironmentFault, match=r"^relay: game of seed \d+, step 1: step raised RuntimeError: the ball"):
        play(envs, 1)


def test_a_resumed_run_starts_the_next_games():
    envs, games = make()
    past = [PastEpisode(4, None, np.zeros(2, np.float32), 0.0, 3)] * 6
    obs = torch.full((6, 2), 77.0)
    assert envs.rebuild(past, obs) == ["a game of several agents cannot be brought back"] * 6
    assert obs.tolist() == [[0, 0], [1, 0], [0, 0]] * 2
    assert [game.seeds[-1] for game in games] == [episode_seed(SEED, first, 5, 6) for first in (0, 3)]


def test_closing_closes_every_game():
    envs, games = make()
    envs.close()
    envs.close()
    assert all(game.closed for game in games)


def test_a_game_is_found_by_its_function():
    settings = EnvSettings("tests.fixtures.games:Relay", SEED, 3, 0, 3, env_kwargs='{"length": 5}')
    envs = make_tensor_envs(settings)
    assert isinstance(envs, ParallelGames)
    assert [out.terminated[0].item() for out, _ in play(envs, 6)[1]] == [False] * 4 + [True, False]


def test_an_agent_without_a_final_observation_is_valued_by_the_one_before():
    class Silent(Relay):
        def step(self, actions):
            seen, *rest = super().step(actions)
            return {agent: obs for agent, obs in seen.items() if agent in self.agents}, *rest

    envs, _ = make(3, kind=Silent)
    _, played = play(envs, 4)
    assert played[3][0].final_obs[2].tolist() == [2, 3]


def test_a_mask_that_allows_nothing_is_named():
    class Stuck(Relay):
        def mask_of(self, agent):
            return np.array([0, 0, 0] if agent == "a" and self._step == 2 else [1, 1, 1], np.int8)

    for masks in ("observation", "info"):
        envs, _ = make(kind=Stuck, masks=masks)
        with pytest.raises(EnvironmentFault, match=r"^relay environment 0: step 3 of 8 began with an action_mask that"):
            list(rollouts(envs, random_agent(envs.spec), 8, 1))


def test_masks_are_found_whichever_agent_begins():
    class Late(Relay):
        def __init__(self, **options):
            super().__init__(**options)
            self.possible_agents = ["c", "a", "b"]

    envs, _ = make(kind=Late, masks="info")
    (rollout,) = rollouts(envs, random_agent(envs.spec), 16, 1)
    of_a = torch.arange(6).expand(16, 6) % 3 == 1
    assert (rollout.actions[rollout.valid & of_a] == 1).all()


def test_an_agent_that_goes_needs_no_mask():
    class Leaving(Relay):
        def step(self, actions):
            *columns, infos = super().step(actions)
            return *columns, {agent: info if agent in self.agents else {} for agent, info in infos.items()}

    envs, _ = make(3, kind=Leaving, masks="info")
    play(envs, 5)


def test_a_game_whose_agents_act_in_turn_is_refused():
    settings = EnvSettings("mpe2.simple_spread_v3:env", SEED, 3, 0, 3)
    with pytest.raises(ConfigError, match=r"act one after the other; .* as in mpe2.simple_spread_v3:parallel_env$"):
        make_tensor_envs(settings)


@pytest.mark.parametrize("answer", [{}, ({}, None), None])
def test_a_game_that_cannot_be_reset_is_refused(answer):
    class Odd(Relay):
        def reset(self, seed=None, options=None):
            return answer

    with pytest.raises(ConfigError, match=r"^--env-id relay: .*; reset\(seed=...\) has to return"):
        make(3, kind=Odd)


def test_an_agent_that_nobody_knew_of_is_named():
    class Crowded(Relay):
        def step(self, actions):
            answer = super().step({agent: action for agent, action in actions.items() if agent != "d"})
            self.agents = [*self.agents, "d"] if self.agents else []
            return answer

    envs, _ = make(3, kind=Crowded)
    with pytest.raises(EnvironmentFault, match=r"step 1: step added the agent d, which is not among `possible_agents`"):
        play(envs, 1)


def test_an_agent_that_plays_on_has_an_observation():
    """Else its rewards would be nobody's."""

    class Unseen(Relay):
        def step(self, actions):
            seen, *rest = super().step(actions)
            return {agent: each for agent, each in seen.items() if agent != "a"}, *rest

    envs, _ = make(3, kind=Unseen)
    expected = r"step 1: step returned no observation for a, which is among `agents`$"
    with pytest.raises(EnvironmentFault, match=expected):
        play(envs, 1)


def test_what_is_no_dictionary_is_named():
    class Listed(Relay):
        def step(self, actions):
            seen, *rest = super().step(actions)
            return list(seen.values()), *rest

    envs, _ = make(3, kind=Listed)
    with pytest.raises(EnvironmentFault, match=r"step 1: step returned no tuple of 5 dictionaries by agent$"):
        play(envs, 1)
