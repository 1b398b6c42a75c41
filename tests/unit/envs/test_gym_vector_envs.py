"""VectorEnvs: what they are given and what is read of them; those that are wrong are named in one line."""

from __future__ import annotations

from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from fabric_ppo.config_info_keys import info_keys_of
from fabric_ppo.envs.actions import tensor_action_converter
from fabric_ppo.envs.batched import make_tensor_envs
from fabric_ppo.envs.contract import EnvSettings
from fabric_ppo.envs.gym_vector_envs import GymVectorEnvs, _say_not_reset
from fabric_ppo.envs.ids import register_atari
from fabric_ppo.envs.spaces import Packer
from fabric_ppo.envs.tensor_contract import StepOutputs
from fabric_ppo.process.errors import ConfigError, EnvironmentFault
from tests.fixtures.agents import random_agent
from tests.fixtures.batches import KINDS, Counting
from tests.fixtures.envs import SEED
from tests.fixtures.rollouts import rollouts

DEVICES = {"numpy": np.ndarray, "torch": torch.Tensor}


def settings_of(num_envs=2, **more):
    return EnvSettings("batch", SEED, num_envs, 4, 8, **more)


def outputs_of(envs):
    n, space = envs.num_envs, envs.spec.observation
    flags = [torch.ones(n, dtype=torch.bool) for _ in range(3)]
    obs = torch.from_numpy(np.zeros((n, *space.shape), space.dtype))
    return StepOutputs(obs, torch.full((n,), 77.0), *flags, torch.zeros_like(obs))


def start(envs):
    out = outputs_of(envs)
    envs.reset(out.obs)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_actions_come_as_the_arrays_that_observations_are(kind):
    env = Counting(2, kind=kind)
    envs = GymVectorEnvs(env, settings_of())
    envs.step(torch.tensor([1, 0]), start(envs))
    (taken,) = env.taken
    assert type(taken).__module__.partition(".")[0].removesuffix("lib") in kind
    assert np.asarray(taken).tolist() == [1, 0]


def test_all_start_from_one_seed_of_this_rank():
    from fabric_ppo.seeding import episode_seed

    class Seeded(Counting):
        seeds = ()

        def reset(self, *, seed=None, options=None):
            self.seeds = (*self.seeds, seed)
            return super().reset(options=options)

    env = Seeded(2)
    envs = GymVectorEnvs(env, settings_of())
    start(envs)
    envs.begin([123, 456], outputs_of(envs).obs)
    first = episode_seed(SEED, 4, 0, 8)
    assert env.seeds == (first, first, 123)


class Nested(Counting):
    """Counting, with a Dict whose parts are of two types."""

    def __init__(self, num_envs):
        super().__init__(num_envs)
        self.single_observation_space = gymnasium.spaces.Dict(
            place=self.single_observation_space, kind=gymnasium.spaces.MultiDiscrete([9, 9])
        )

    def _obs(self):
        return {"place": super()._obs(), "kind": np.stack([self._at, self._at + 1], -1)}


def test_nested_observations_become_the_rows_that_packing_one_gives():
    envs = GymVectorEnvs(Nested(3), settings_of(3))
    out, pack = start(envs), Packer(envs.spec.observation)
    envs.step(torch.zeros(3, dtype=torch.int64), out)
    one = {"place": np.array([0, 1], np.float32), "kind": np.array([1, 2])}
    assert out.obs.numpy().tolist() == [pack(one).tolist()] * 3


ACTION = gymnasium.spaces.Dict(
    go=gymnasium.spaces.Discrete(3, start=1),
    two=gymnasium.spaces.Tuple((gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.MultiBinary(2))),
)


@pytest.mark.parametrize("kind", KINDS)
def test_nested_actions_come_as_the_arrays_that_observations_are(kind):
    env = Counting(2, kind=kind)
    env.single_action_space = ACTION
    envs = GymVectorEnvs(env, settings_of())
    stored = torch.tensor([[2.0, 0.5, -3.0, 1.0, 0.0], [0.0, 0.25, 0.0, 0.0, 1.0]])
    envs.step(tensor_action_converter(envs.spec.action)(stored), start(envs))
    (taken,) = env.taken
    assert list(taken) == ["go", "two"]
    assert type(taken["two"]) is tuple
    for each in (taken["go"], *taken["two"]):
        assert type(each).__module__.partition(".")[0].removesuffix("lib") in kind
    assert np.asarray(taken["go"]).tolist() == [3, 1]
    assert np.asarray(taken["two"][0]).tolist() == [[0.5, -1], [0.25, 0]]
    assert np.asarray(taken["two"][1]).tolist() == [[1, 0], [0, 1]]


def test_numbers_of_info_are_read_where_episodes_end():
    class Told(Counting):
        def step(self, actions):
            *columns, info = super().step(actions)
            return *columns, info | {"height": np.arange(self.num_envs) + 10.0 * self._at}

    keys = info_keys_of("height,sum:height")
    envs = GymVectorEnvs(Told(2, length=2), settings_of(info_keys=keys))
    out, found = start(envs), {}
    for _ in range(3):
        envs.step(torch.zeros(2, dtype=torch.int64), out)
        found |= {ending.env: [number for number, _ in ending.readings] for ending in envs.endings}
    asked = [key.key for key in keys if key.is_asked]
    assert asked == ["height", "height"]
    assert found == {0: [*found[0][:-2], 20, 30], 1: [*found[1][:-2], 31, 63]}


@pytest.mark.parametrize("keeps", [False, True])
def test_numbers_of_a_last_step_are_in_final_info(keeps):
    """Where a reset in the same step has put its own `info` in the place of that of the step, for all or for some."""

    class Told(Counting):
        def step(self, actions):
            *columns, info = super().step(actions)
            ended, at = columns[3], self._at
            if not ended.any():
                return *columns, info | {"height": at + 10.0}
            last = np.where(ended, self._lengths, at) + 10.0
            after = {"height": np.where(ended, 99.0, last)} if keeps else {}
            return *columns, info | after | {"final_info": {"height": np.where(ended, last, 0.0) if keeps else last}}

    keys = info_keys_of("height,sum:height")
    envs = GymVectorEnvs(Told(2, mode="SAME_STEP", length=2), settings_of(info_keys=keys))
    out, found = start(envs), {}
    for _ in range(3):
        envs.step(torch.zeros(2, dtype=torch.int64), out)
        found |= {ending.env: [number for number, _ in ending.readings][-2:] for ending in envs.endings}
    assert found == {0: [12, 23], 1: [13, 36]}


@pytest.mark.parametrize("told", [None, "sometimes", 3])
def test_an_autoreset_mode_that_is_not_told_is_refused(told):
    env = Counting(2)
    env.metadata = {} if told is None else {"autoreset_mode": told}
    with pytest.raises(ConfigError, match=rf'metadata\["autoreset_mode"\] is {told!r}; one of AutoresetMode.NEXT_STEP'):
        GymVectorEnvs(env, settings_of())


def test_a_mode_may_be_told_by_its_value():
    env = Counting(2, mode="SAME_STEP")
    env.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP.value}
    assert GymVectorEnvs(env, settings_of()).finals == "given"


class Wrong(Counting):
    """Counting, of whose second step one part is replaced."""

    changes: ClassVar = {}

    def step(self, actions):
        answer = list(super().step(actions))
        for index, change in self.changes.items():
            if change is None:
                return tuple(answer[:index])
            answer[index] = change(answer[index])
        return tuple(answer)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({0: lambda obs: obs[:, :1]}, r"step returned observations of shape \(2, 1\); \(2, 2\) is expected"),
        ({0: lambda obs: obs[:1]}, r"step returned observations of shape \(1, 2\); \(2, 2\) is expected"),
        ({0: lambda obs: {"a": obs}}, "step returned observations that cannot be read"),
        ({1: lambda rewards: rewards[:, None]}, r"step returned rewards of shape \(2, 1\); \(2,\) is expected"),
        ({2: lambda flags: flags[:1]}, r"step returned terminated of shape \(1,\); \(2,\) is expected"),
        (
            {0: lambda obs: torch.zeros(2, 2, device="meta")},
            "step returned observations on meta; cpu is expected, where the first",
        ),
        ({3: lambda flags: torch.zeros(2, device="meta")}, "step returned truncated on meta; cpu is expected"),
        ({3: lambda flags: np.where(flags, np.nan, 0.5)}, "step returned truncated with other numbers than 0 and 1"),
        ({1: lambda rewards: None}, "step returned rewards that are no numbers"),
        ({4: None}, r"step returned something else than \(observation, reward, terminated, truncated, info\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(changes, said):
    env = Wrong(2)
    env.changes = changes
    envs = GymVectorEnvs(env, settings_of())
    out = start(envs)
    with pytest.raises(EnvironmentFault, match=rf"^batch: environments 4 to 5: {said}"):
        envs.step(torch.zeros(2, dtype=torch.int64), out)


@pytest.mark.parametrize(("index", "what"), [(0, r"observation nan in entry \[1\]"), (1, "reward inf")])
def test_a_number_that_is_not_finite_is_named_by_its_environment(index, what, monkeypatch):
    def spoil(values):
        values[(1, 1) if index == 0 else 1] = np.nan if index == 0 else np.inf
        return values

    env = Wrong(2)
    env.changes = {index: spoil}
    envs = GymVectorEnvs(env, settings_of())
    with pytest.raises(EnvironmentFault, match=rf"^batch environment 5: step 1 of 4 gave {what}, which is not finite$"):
        list(rollouts(envs, random_agent(envs.spec), 4, 1))


def test_an_error_of_the_environments_is_a_fault():
    class Breaking(Counting):
        def step(self, actions):
            raise RuntimeError("out of fuel")

    envs = GymVectorEnvs(Breaking(2), settings_of())
    out = start(envs)
    with pytest.raises(EnvironmentFault, match=r"^batch: environments 4 to 5: step raised RuntimeError: out of fuel"):
        envs.step(torch.zeros(2, dtype=torch.int64), out)


def make_nothing():
    return object()


def make_fewer():
    return Counting(1)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("make_nothing", "it made a object; a gymnasium.vector.VectorEnv, a FunctionalEnv or a pettingzoo.ParallelEnv"),
    ],
)
def test_other_things_are_refused(function, said):
    settings = EnvSettings(f"{__name__}:{function}", SEED, 2, 0, 2)
    with pytest.raises(ConfigError, match=f"^--env-id {__name__}:{function}: {said}"):
        make_tensor_envs(settings)


def test_another_number_of_environments_is_refused():
    settings = EnvSettings(f"{__name__}:make_fewer", SEED, 2, 0, 2)
    expected = "--num-envs 1 is expected, or a function that takes num_envs"
    with pytest.raises(ConfigError, match=f"^--num-envs 2: {__name__}:make_fewer made 1 environments; {expected}$"):
        make_tensor_envs(settings)


def test_an_id_without_a_vector_entry_point_is_refused():
    with pytest.raises(ConfigError, match=r"^--env-id LunarLander-v3: cannot be made \(.*vector.*\)$"):
        make_tensor_envs(EnvSettings("LunarLander-v3", SEED, 2, 0, 2))


def test_arguments_reach_the_function():
    settings = EnvSettings("tests.fixtures.batches:Counting", SEED, 2, 0, 2, env_kwargs='{"mode": "DISABLED"}')
    assert make_tensor_envs(settings).finals == "given"
    with pytest.raises(ConfigError, match=r'--env-kwargs {"colour": 3}: cannot be made \(.*colour'):
        make_tensor_envs(EnvSettings("tests.fixtures.batches:Counting", SEED, 2, 0, 2, env_kwargs='{"colour": 3}'))


def test_gymnasiums_own_batch_trains_in_the_mode_that_it_tells():
    """CartPole's vector entry point: rows as its single environment steps, from the observations before them."""
    envs = make_tensor_envs(EnvSettings("CartPole-v1", SEED, 4, 0, 4))
    twin = gymnasium.make("CartPole-v1").unwrapped
    twin.reset(seed=0)
    (rollout,) = rollouts(envs, random_agent(envs.spec), 40, 1)
    assert rollout.episodes
    for t in range(39):
        for env in range(4):
            if rollout.valid[t, env] and not (rollout.terminated[t, env] or rollout.truncated[t, env]):
                twin.state = rollout.obs[t, env].double().numpy()
                expected, *_ = twin.step(rollout.actions[t, env].item())
                np.testing.assert_allclose(rollout.obs[t + 1, env].numpy(), expected, atol=1e-5)


def test_the_row_of_a_reset_gives_nothing():
    """Whatever the environments pay there: it would else be in the statistics of discounted returns."""

    class Paying(Counting):
        def step(self, actions):
            obs, rewards, *rest = super().step(actions)
            return obs, np.where(rewards == 0, 77.0, rewards), *rest

    envs = GymVectorEnvs(Paying(2, length=2), settings_of())
    out = start(envs)
    for _ in range(12):
        envs.step(torch.zeros(2, dtype=torch.int64), out)
        assert out.rewards.tolist() == out.valid.float().tolist()


def test_where_some_final_observations_are_missing_the_one_before_stands_for_them(capsys):
    class Partly(Counting):
        def step(self, actions):
            *columns, info = super().step(actions)
            if "final_obs" in info:
                info["final_obs"][0] = None
            return *columns, info

    envs = GymVectorEnvs(Partly(2, mode="SAME_STEP", length=2, final="objects"), settings_of())
    out, finals = start(envs), {}
    for _ in range(3):
        envs.step(torch.zeros(2, dtype=torch.int64), out)
        finals |= {env: out.final_obs[env].tolist() for env in (0, 1) if out.truncated[env]}
        out = out._replace(obs=out.obs.clone())
    assert finals == {0: [0, 1], 1: [0, 3]}
    assert capsys.readouterr().err.count("hidden") == 1


def test_environments_may_change_their_actions():
    """What the agent drew stays in the rollout."""

    class Changing(Counting):
        def step(self, actions):
            actions[...] = 1
            return super().step(actions)

    for kind in ("numpy", "torch"):
        envs = GymVectorEnvs(Changing(3, kind=kind), settings_of(3))
        (rollout,) = rollouts(envs, random_agent(envs.spec), 32, 1)
        assert set(rollout.actions.unique().tolist()) == {0, 1}


def test_gymnasiums_objects_are_read_as_numbers():
    """Its SyncVectorEnv has an array of objects where an environment gives NumPy's bool, or nothing."""

    class Told(Counting):
        def step(self, actions):
            *columns, info = super().step(actions)
            told = np.full(self.num_envs, None)
            told[0] = np.bool_(True)
            return *columns, info | {"is_success": told}

    envs = GymVectorEnvs(Told(2, length=2), settings_of())
    out, found = start(envs), {}
    for _ in range(4):
        envs.step(torch.zeros(2, dtype=torch.int64), out)
        found |= {ending.env: ending.readings[0][0] for ending in envs.endings}
    assert found == {0: 1.0, 1: 0.0}


def test_an_error_in_close_costs_a_warning(capsys):
    class Closing(Counting):
        def close(self):
            raise RuntimeError("stuck")

    envs = GymVectorEnvs(Closing(2), settings_of())
    envs.close()
    envs.close()
    assert capsys.readouterr().err == "warning: batch: close raised RuntimeError: stuck\n"


def test_final_observations_of_others_are_not_looked_at():
    class Zeros(Counting):
        def __init__(self, num_envs):
            super().__init__(num_envs, mode="SAME_STEP", length=2)
            self.single_observation_space = gymnasium.spaces.MultiDiscrete([99, 99], start=[1, 1])

        def _obs(self):
            return np.stack([self._episodes, self._at], -1) + 1

        def step(self, actions):
            *columns, info = super().step(actions)
            ended = columns[2] | columns[3]
            return *columns, {"final_obs": np.where(ended[:, None], info["final_obs"], 0)} if ended.any() else {}

    envs = GymVectorEnvs(Zeros(2), settings_of())
    out = start(envs)
    for _ in range(2):
        envs.step(torch.zeros(2, dtype=torch.int64), out)
    assert out.truncated.tolist() == [True, False]
    assert out.final_obs[0].tolist() == [1, 3]


@pytest.mark.parametrize("final", ["final_obs", "objects"])
def test_a_final_observation_that_is_not_finite_is_named(final):
    class Broken(Counting):
        def step(self, actions):
            *columns, info = super().step(actions)
            if "final_obs" in info and columns[3][1]:
                info["final_obs"][1] = np.full(2, np.nan, np.float32)
            return *columns, info

    envs = GymVectorEnvs(Broken(2, mode="SAME_STEP", final=final), settings_of())
    with pytest.raises(EnvironmentFault, match=r"^batch.* final observation"):
        list(rollouts(envs, random_agent(envs.spec), 8, 1))


def test_arrays_that_cannot_be_written_to_are_read_without_a_warning(recwarn):
    class Fixed(Counting):
        def step(self, actions):
            *columns, info = super().step(actions)
            for column in columns:
                column.flags.writeable = False
            return *columns, info

    envs = GymVectorEnvs(Fixed(2), settings_of())
    envs.step(torch.zeros(2, dtype=torch.int64), start(envs))
    assert not recwarn.list


def test_a_reset_that_fails_at_once_is_one_line():
    class Breaking(Counting):
        def reset(self, *, seed=None, options=None):
            raise RuntimeError("no fuel")

    with pytest.raises(ConfigError) as caught:
        GymVectorEnvs(Breaking(2), settings_of())
    assert str(caught.value) == "--env-id batch: environments 4 to 5: reset raised RuntimeError: no fuel"


def test_a_part_of_a_dictionary_that_is_not_finite_is_named():
    class Broken(Nested):
        def step(self, actions):
            obs, *rest = super().step(actions)
            obs["place"][2, 1] = np.inf
            return obs, *rest

    envs = GymVectorEnvs(Broken(3), settings_of(3))
    with pytest.raises(EnvironmentFault, match=r"^batch environment 6: step 1 of 4 gave observation inf"):
        list(rollouts(envs, random_agent(envs.spec), 4, 1))


def take_steps(envs, count):
    out = start(envs)
    for _ in range(count):
        envs.step(torch.zeros(2, dtype=torch.int64), out)


class Careless(Counting):
    """Counting that is reset by request, and resets what it likes."""

    def __init__(self, *args, resets="all", **options):
        super().__init__(*args, mode="DISABLED", **options)
        self._resets = resets

    def reset(self, *, seed=None, options=None):
        if options and "reset_mask" in options:
            mask = np.full(self.num_envs, self._resets == "all")
            options = {"reset_mask": mask}
        return super().reset(seed=seed, options=options)


def test_episodes_that_go_on_are_not_to_be_reset():
    envs = GymVectorEnvs(Careless(2), settings_of())  # their episodes have three steps and four
    with pytest.raises(EnvironmentFault, match=r"reset with a reset_mask that is false for environment 5 has changed"):
        take_steps(envs, 3)


def test_environments_that_reset_nothing_are_asked_about_once(capsys):
    class Ending(Careless):
        def step(self, actions):
            obs, rewards, terminated, truncated, info = super().step(actions)
            return obs, rewards, terminated, truncated | (self._at >= self._lengths), info

    _say_not_reset.cache_clear()
    envs = GymVectorEnvs(Ending(2, resets="nothing", blank=True), settings_of())
    take_steps(envs, 8)
    said = capsys.readouterr()
    assert (said.out + said.err).count("do the environments start those where the mask is true?") == 1


def test_nothing_is_asked_about_episodes_of_one_step_that_look_the_same(capsys):
    """Bandits: each episode ends in its first step, and there is one observation only."""
    _say_not_reset.cache_clear()
    envs = GymVectorEnvs(Counting(2, mode="DISABLED", length=1, blank=True), settings_of())
    take_steps(envs, 8)
    said = capsys.readouterr()
    assert said.out + said.err == ""


def test_final_observations_of_another_number_are_named():
    class Short(Counting):
        def step(self, actions):
            *answer, info = super().step(actions)
            return *answer, {key: each[:1] for key, each in info.items()}

    envs = GymVectorEnvs(Short(2, mode="SAME_STEP", final="objects"), settings_of())
    with pytest.raises(EnvironmentFault, match=r"final observations of shape \(1,\); \(2,\) is expected"):
        take_steps(envs, 4)


def test_a_batch_that_is_observed_in_another_way_than_its_single_environment_is_refused():
    """Tests are played in single environments: a run must not find that out at its end."""
    expected = (
        r"^--env-backend vector: observations of ALE/Pong-v5 are Box\(4, 84, 84\) uint8 in a batch, and Box\(210,"
    )
    register_atari("ALE/Pong-v5")
    with pytest.raises(ConfigError, match=expected):
        make_tensor_envs(EnvSettings("ALE/Pong-v5", SEED, 2, 0, 2))
