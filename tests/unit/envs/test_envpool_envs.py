"""EnvPool's environments, held against EnvPool itself in a plain loop, and against the definitions."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.envs import envpool_envs
from fabric_ppo.envs.actions import ActionConverter
from fabric_ppo.envs.contract import PastEpisode
from fabric_ppo.envs.ids import resolve_envpool_id
from fabric_ppo.envs.make import make_envs
from fabric_ppo.fast.loss_module import PPOLoss
from fabric_ppo.ppo.batch import Rows, make_batch
from fabric_ppo.ppo.loss import minibatch_loss
from fabric_ppo.process.errors import ConfigError, EnvironmentFault
from fabric_ppo.process.group import ALONE
from fabric_ppo.run.resolve import resolve
from fabric_ppo.seeding import episode_seed
from tests.fixtures.envs import SEED, env_opener, reset, step
from tests.fixtures.rollouts import rollouts
from tests.fixtures.updates import coefs_of

envpool = pytest.importorskip("envpool", reason="EnvPool needs Python 3.11")


pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting.*")


ENV_IDS = ["CartPole-v1", "LunarLander-v3", "Pendulum-v1", "FrozenLake-v1", "MountainCarContinuous-v0"]


CUT_AFTER = 200
"""Steps after which Pendulum's episodes are cut; they never end by themselves."""


@pytest.fixture
def open_envs():
    """Make environments as a run does; close them at the end."""
    with env_opener("envpool") as open_:
        yield open_


def random_actions(spec, steps, num_envs):
    """Stored actions, `[steps, num_envs, ...]`, some of them beyond the bounds of a Box."""
    rng = np.random.default_rng(0)
    shape = (steps, num_envs, *spec.action.shape)
    return rng.integers(0, spec.action.sizes[0], shape) if spec.action.sizes else rng.normal(0, 2, shape)


def plain_loop(spec, actions, first_env=0, total_envs=None):
    """EnvPool's own answers to stored actions `[T, N, ...]`: obs `[T + 1, N, ...]`, rewards and flags `[T, N]`."""
    num_envs = actions.shape[1]
    seeds = [episode_seed(SEED, first_env + env, 0, total_envs or num_envs) for env in range(num_envs)]
    pool = envpool.make_gymnasium(spec.env_id, num_envs=num_envs, seed=seeds, num_threads=1)
    all_obs, rows = [pool.reset()[0].copy()], []
    for each in ActionConverter(spec.action)(actions):
        obs, reward, terminated, truncated, _ = pool.step(each)
        all_obs.append(obs.copy())
        rows.append((reward.copy(), terminated.copy(), truncated.copy()))
    rewards, terminated, truncated = (np.stack(column) for column in zip(*rows, strict=True))
    return SimpleNamespace(obs=np.stack(all_obs), rewards=rewards, terminated=terminated, truncated=truncated)


def make_policy(spec):
    """An agent as a run starts with."""
    return make_agent(spec, Config(env_id=spec.env_id, seed=SEED))


@pytest.mark.parametrize("is_direct", [True, False])
@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_step_is_what_envpool_returns(open_envs, env_id, is_direct):
    """Every row as EnvPool gives it; a row that follows an end is no transition."""
    num_envs, steps = 5, 450
    envs = open_envs(env_id, num_envs)
    if is_direct:
        envs._pool.step = None  # its compiled part is called without it
    else:
        envs._step = envpool_envs._step_of(SimpleNamespace(step=envs._pool.step))
    actions = random_actions(envs.spec, steps, num_envs)
    expected = plain_loop(envs.spec, actions)
    np.testing.assert_array_equal(reset(envs), expected.obs[0])
    ended = np.zeros(num_envs, bool)
    for t in range(steps):
        got = step(envs, actions[t])
        np.testing.assert_array_equal(got.obs, expected.obs[t + 1])
        np.testing.assert_array_equal(got.rewards, expected.rewards[t])
        np.testing.assert_array_equal(got.terminated, expected.terminated[t])
        np.testing.assert_array_equal(got.truncated, expected.truncated[t])
        np.testing.assert_array_equal(got.valid, ~ended)
        assert got.finals == []
        ended = got.terminated | got.truncated
    assert (expected.terminated | expected.truncated).sum() > 2 or env_id == "MountainCarContinuous-v0"


def test_the_final_observation_comes_first_and_the_next_episode_with_the_row_after_it(open_envs):
    """CartPole falls where it falls, and starts every entry within 0.05, whatever the action in between."""
    envs = open_envs("CartPole-v1", 6)
    reset(envs)
    before = np.zeros(6, bool)
    for _ in range(80):
        got = step(envs, np.ones(6))
        position, angle = np.abs(got.obs[:, 0]), np.abs(got.obs[:, 2])
        has_fallen = (position >= np.float32(2.4)) | (angle >= np.float32(math.radians(12)))
        np.testing.assert_array_equal(got.terminated, has_fallen)
        assert (np.abs(got.obs[before]) <= 0.05).all()
        assert (got.rewards[before] == 0).all()
        assert not (got.terminated | got.truncated)[before].any()
        before = got.terminated


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "MountainCar-v0"])
def test_a_time_limit_truncates(open_envs, env_id):
    """After 200 steps, and after 200 more once the row between the episodes has passed; it never terminates."""
    envs = open_envs(env_id, 3)
    reset(envs)
    rows = [step(envs, np.zeros((3, *envs.spec.action.shape))) for _ in range(2 * CUT_AFTER + 1)]
    assert not any(row.terminated.any() for row in rows)
    assert [t for t, row in enumerate(rows) if row.truncated.any()] == [CUT_AFTER - 1, 2 * CUT_AFTER]
    assert [t for t, row in enumerate(rows) if not row.valid.all()] == [CUT_AFTER]
    assert not rows[CUT_AFTER].valid.any()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v3", "Pendulum-v1"])
def test_neither_ranks_nor_threads_change_an_environment(open_envs, env_id):
    """6 environments on 1, 2 or 3 ranks, with 1 or 3 threads each: bit for bit the same."""
    total, steps = 6, 300
    seen = []
    for num_ranks, num_threads in ((1, 1), (1, 3), (2, 1), (2, 3), (3, 2)):
        n = total // num_ranks
        ranks = [open_envs(env_id, n, rank, num_ranks, num_threads=num_threads) for rank in range(num_ranks)]
        actions = random_actions(ranks[0].spec, steps, total)
        obs = [np.concatenate([reset(envs) for envs in ranks])]
        for each in actions:
            rows = [step(envs, each[rank * n : (rank + 1) * n]) for rank, envs in enumerate(ranks)]
            obs.append(np.concatenate([row.obs for row in rows]))
        seen.append(np.stack(obs))
    for other in seen[1:]:
        np.testing.assert_array_equal(other, seen[0])


def test_nothing_of_an_episode_in_progress_comes_back(open_envs):
    """`rebuild` gives a reason for every environment, and begins with episodes whose first row is a transition."""
    envs = open_envs("CartPole-v1", 2)
    reset(envs)
    while not step(envs, [1, 1]).terminated.all():
        pass
    obs = np.full((2, 4), 77, np.float32)
    reasons = envs.rebuild([PastEpisode(1, None, obs[0], 3.0, 3)] * 2, obs)
    assert all("EnvPool" in why for why in reasons)
    assert len(reasons) == 2
    assert (np.abs(obs) <= 0.05).all()
    assert step(envs, [0, 1]).valid.all()


def test_actions_reach_the_environment_clipped(open_envs):
    """Pendulum's reward punishes the torque that it was given: 0.001 u^2."""
    rewards = []
    for torque in (0.0, 2.0, 5.0):
        envs = open_envs("Pendulum-v1", 1)
        reset(envs)
        rewards.append(step(envs, [[torque]]).rewards[0])
    assert rewards[0] - rewards[1] == pytest.approx(0.004, rel=1e-3)
    assert rewards[1] == rewards[2]


@pytest.mark.parametrize(("env_id", "dtype"), [("FrozenLake-v1", "int64"), ("CarRacing-v3", "uint8")])
def test_observations_have_the_type_of_gymnasiums(open_envs, env_id, dtype):
    """EnvPool's FrozenLake gives int32; what an agent is built for is what it is tested in."""
    envs = open_envs(env_id, 2)
    assert envs.spec.observation.dtype == dtype
    sync = make_envs(Config(env_id=env_id, num_envs=1), 0, 1)
    assert envs.spec == sync.spec
    sync.close()
    assert reset(envs).shape == (2, *envs.spec.observation.shape)


@pytest.mark.parametrize(("cores", "ranks", "num_envs", "expected"), [(8, 2, 16, 4), (8, 2, 3, 3), (2, 4, 16, 1)])
def test_threads_share_the_hosts_cores_with_other_ranks(monkeypatch, open_envs, cores, ranks, num_envs, expected):
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", ranks), ("LOCAL_WORLD_SIZE", ranks)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert open_envs("CartPole-v1", num_envs)._pool.config["num_threads"] == expected
    assert open_envs("CartPole-v1", num_envs, num_threads=2)._pool.config["num_threads"] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_close_ends_the_threads(open_envs):
    def count():
        return len(os.listdir("/proc/self/task"))

    before = count()
    envs = open_envs("CartPole-v1", 8, num_threads=5)
    reset(envs)
    assert count() >= before + 5
    envs.close()
    assert count() == before
    envs.close()  # a second call does nothing


@pytest.mark.parametrize(
    ("what", "value"), [("rewards", np.nan), ("rewards", np.inf), ("obs", np.nan), ("obs", -np.inf)]
)
def test_values_that_are_not_finite_are_faults(open_envs, what, value):
    envs = open_envs("CartPole-v1", 3, rank=1, num_ranks=2)
    obs, rewards, no = np.zeros((3, 4), np.float32), np.zeros(3, np.float32), np.zeros(3, bool)
    (rewards if what == "rewards" else obs[:, 3])[1] = value
    envs._step = lambda _: (obs, rewards, no, no)
    with pytest.raises(EnvironmentFault, match=r"^CartPole-v1 environment 4: .* not finite as float32$"):
        step(envs, [0, 0, 0])


def test_a_first_observation_that_is_not_finite_is_a_fault(open_envs):
    envs = open_envs("CartPole-v1", 2)
    envs._pool = SimpleNamespace(reset=lambda: (np.array([[0] * 4, [0, np.nan, 0, 0]], np.float32), {}))
    with pytest.raises(EnvironmentFault, match=r"^CartPole-v1 environment 1: .* not finite as float32$"):
        reset(envs)


def test_numbers_beyond_float32_are_faults(open_envs):
    """Also where the space is float64, of which networks make float32."""
    envs = open_envs("HalfCheetah-v5", 2)
    assert envs.spec.observation.dtype == "float64"
    obs, no = np.zeros((2, 17)), np.zeros(2, bool)
    obs[1, 3] = 1e39
    envs._step = lambda _: (obs, np.zeros(2, np.float32), no, no)
    with pytest.raises(EnvironmentFault, match=r"^HalfCheetah-v5 environment 1: .* not finite as float32$"):
        step(envs, np.zeros((2, 6), np.float32))


def test_large_observations_are_finite(open_envs):
    """Entries whose squares overflow are no fault."""
    envs = open_envs("CartPole-v1", 2)
    obs, no = np.full((2, 4), 3e38, np.float32), np.zeros(2, bool)
    envs._step = lambda _: (obs, np.zeros(2, np.float32), no, no)
    np.testing.assert_array_equal(step(envs, [0, 0]).obs, obs)


LAYOUTS = [
    ("CartPole-v1", 32, 5),
    ("CartPole-v1", 2, 40),  # nearly every edge of a rollout falls between an end and the row that follows it
    ("Pendulum-v1", CUT_AFTER, 3),  # the end in the last row, the row that follows it in the next rollout
    ("Pendulum-v1", CUT_AFTER + 1, 3),  # both in the last rows
    ("Pendulum-v1", 64, 8),
    ("LunarLander-v3", 100, 4),
]


@pytest.mark.parametrize(("env_id", "num_steps", "count"), LAYOUTS)
def test_episodes_and_steps_are_counted_as_by_hand(open_envs, env_id, num_steps, count):
    """Returns and lengths, also of episodes over the edges of rollouts, from EnvPool's own rewards for the actions."""
    num_envs, first_env = 4, 4
    envs = open_envs(env_id, num_envs, rank=1, num_ranks=2)
    collected = list(rollouts(envs, make_policy(envs.spec), num_steps, count))
    actions = np.concatenate([rollout.actions.numpy() for rollout in collected])
    plain = plain_loop(envs.spec, actions, first_env, 2 * num_envs)
    expected, steps = [], np.zeros(count, int)
    for env in range(num_envs):
        ret, length, skip = 0.0, 0, False
        for t in range(len(actions)):
            if skip:
                skip = False
                continue
            steps[t // num_steps] += 1
            ret, length = ret + float(plain.rewards[t, env]), length + 1
            if plain.terminated[t, env] or plain.truncated[t, env]:
                expected.append((t // num_steps, t % num_steps, first_env + env, ret, length))
                ret, length, skip = 0.0, 0, True
    got = [(update, *dataclasses.astuple(each)[:4]) for update, one in enumerate(collected) for each in one.episodes]
    assert len(got) > 3
    assert [row[:3] for row in got] == [row[:3] for row in sorted(expected)]
    np.testing.assert_allclose(np.array(got)[:, 3:], np.array(sorted(expected))[:, 3:], rtol=1e-12)
    assert [rollout.stats.env_steps for rollout in collected] == steps.tolist()
    assert (steps < num_steps * num_envs).any()


@pytest.mark.parametrize(("env_id", "num_steps", "count"), LAYOUTS)
def test_advantages_are_those_of_the_transitions_alone(open_envs, env_id, num_steps, count):
    """By the definition, step by step, over what EnvPool gives for the actions; V of the final observation if cut."""
    num_envs, gamma, gae_lambda = 3, 0.9, 0.8
    envs = open_envs(env_id, num_envs)
    agent = make_policy(envs.spec)
    collected = list(rollouts(envs, agent, num_steps, count))
    plain = plain_loop(envs.spec, np.concatenate([rollout.actions.numpy() for rollout in collected]))
    with torch.no_grad():
        value = agent.values(torch.from_numpy(plain.obs).flatten(0, 1)).view(-1, num_envs).double().numpy()
    ended = plain.terminated | plain.truncated
    config = Config(env_id=env_id, num_steps=num_steps, gamma=gamma, gae_lambda=gae_lambda, normalize_advantages=False)
    checked = 0
    for update, rollout in enumerate(collected):
        rows = make_batch(rollout, config, ALONE, update, torch.device("cpu")).rows
        advantages, returns = (rows_.view(num_steps, num_envs) for rows_ in (rows.advantages, rows.returns))
        for env in range(num_envs):
            for t in range(num_steps):
                at = update * num_steps + t
                if at > 0 and ended[at - 1, env]:
                    assert rows.weights.view(num_steps, num_envs)[t, env] == 0
                    continue
                expected, discount = 0.0, 1.0
                for later in range(at, (update + 1) * num_steps):
                    after = 0.0 if plain.terminated[later, env] else value[later + 1, env]
                    expected += discount * (plain.rewards[later, env] + gamma * after - value[later, env])
                    discount *= gamma * gae_lambda
                    if ended[later, env]:
                        break
                assert advantages[t, env].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
                assert returns[t, env].item() == pytest.approx(expected + value[at, env], rel=1e-4, abs=1e-4)
                checked += 1
    assert checked == sum(rollout.stats.env_steps for rollout in collected)


def test_rollouts_do_not_depend_on_ranks(open_envs):
    """1 rank of 4 environments, 2 of 2: bit for bit the same rows, as with other backends."""
    by_layout = []
    for num_ranks in (1, 2):
        n = 4 // num_ranks
        ranks = []
        for rank in range(num_ranks):
            envs = open_envs("CartPole-v1", n, rank, num_ranks)
            ranks.append(list(rollouts(envs, make_policy(envs.spec), 48, 2)))
        by_layout.append(
            [
                [torch.cat([getattr(each, name) for each in one], 1) for name in ("obs", "actions", "rewards", "valid")]
                for one in zip(*ranks, strict=True)
            ]
        )
    for one, two in zip(*by_layout, strict=True):
        assert all(map(torch.equal, one, two))


def batch_with_gaps(open_envs, env_id):
    """An agent, a configuration, and a batch in which some rows are no transitions."""
    envs = open_envs(env_id, 8)
    agent = make_policy(envs.spec)
    config = Config(env_id=env_id, clip_vloss=True, ent_coef=0.1, num_steps=64)
    *_, rollout = rollouts(envs, agent, 64, 4)
    batch = make_batch(rollout, config, ALONE, 0, torch.device("cpu"))
    assert 0 < (batch.rows.weights == 0).sum() < len(batch.rows.weights) / 8
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # ratios differ from 1
    return agent, config, batch


def gradient(agent, config, rows, is_fused):
    """The loss and its gradient, as one vector."""
    loss_fn = PPOLoss(agent, config)
    coefs = coefs_of(config)
    losses = loss_fn(rows, coefs) if is_fused else minibatch_loss(loss_fn.weights, rows, coefs)
    loss_fn.zero_grad()
    losses.loss.backward()
    return losses.loss.detach(), nn.utils.parameters_to_vector([each.grad for each in loss_fn.parameters()])


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_rows_that_are_no_transitions_do_not_count(open_envs, env_id, is_fused):
    """Loss, statistics and gradient are those of the other rows alone, and stay the same whatever these rows hold."""
    agent, config, batch = batch_with_gaps(open_envs, env_id)
    (rows,) = batch.minibatches(range(1), len(batch.rows.weights))
    counts = rows.weights > 0
    alone = Rows(*(column[counts] for column in rows[:-1]))._replace(
        weights=torch.full((int(counts.sum()),), 1 / counts.sum())
    )
    losses, grad = gradient(agent, config, rows, is_fused)
    expected_losses, expected_grad = gradient(agent, config, alone, is_fused)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)
    other = {name: torch.where(counts, getattr(rows, name), 1e3) for name in ("advantages", "returns", "values")}
    obs = torch.where(counts[:, None], rows.obs, torch.ones(()))
    changed_losses, changed_grad = gradient(agent, config, rows._replace(obs=obs, **other), is_fused)
    assert torch.equal(changed_losses, losses)
    assert torch.equal(changed_grad, grad)


def test_advantages_are_normalised_over_transitions(open_envs):
    _, config, batch = batch_with_gaps(open_envs, "CartPole-v1")
    counts = batch.rows.weights > 0
    assert config.normalize_advantages
    advantages = batch.rows.advantages[counts].double()
    assert advantages.mean().item() == pytest.approx(0, abs=1e-6)
    assert advantages.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert batch.rows.weights.double().mean().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"env_id": "Pong-v5"}, r"--env-id Pong-v5: only EnvPool has it; .*"),
        (
            {"env_id": "tests.fixtures.toy_envs:Toy-v0"},
            r"--env-id .*: EnvPool does not have it; --env-backend sync or async .*",
        ),
        ({"env_id": "NoSuchThing-v0"}, r"--env-id NoSuchThing-v0: unknown environment; .*"),
        ({"env_id": "CartPole-v1", "num_steps": 1}, r"--num-steps 1: with EnvPool a whole number from 2 up .*"),
        ({"env_id": "CartPole-v1", "restart_envs": True}, r"--restart-envs: --env-backend async is needed too, .*"),
    ],
)
def test_impossible_flags_are_refused(flags, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        resolve(Config(env_backend="envpool", **flags))


def test_without_envpool_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    resolve_envpool_id.cache_clear()
    with pytest.raises(ConfigError, match=r"^--env-backend envpool: .*pip install envpool.*$"):
        resolve(Config(env_backend="envpool"))
    resolve_envpool_id.cache_clear()


def test_a_retired_id_runs_its_successor():
    assert resolve(Config(env_backend="envpool", env_id="LunarLander-v2")).env_id == "LunarLander-v3"


def test_an_environment_that_gymnasium_or_the_agent_cannot_take_is_refused(open_envs, monkeypatch):
    """The test at the end is played in Gymnasium's environment."""
    monkeypatch.setitem(sys.modules, "jax", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"^--env-id phys2d/CartPole-v1: cannot be made .*jax.*$"):
        open_envs("phys2d/CartPole-v1", 2)
    with pytest.raises(ConfigError, match=r"^--env-id Blackjack-v1: nested .* need --env-backend sync or async$"):
        open_envs("Blackjack-v1", 2)


@pytest.mark.parametrize(
    ("what", "changes", "is_refused"),
    [
        ("observation", {"shape": (3,)}, True),
        ("observation", {"dtype": "uint8"}, True),
        ("observation", {"dtype": "float64"}, False),
        ("action", {"low": (-2.0,)}, True),
        ("action", {"kind": "discrete", "shape": (), "sizes": (2,), "low": (), "high": ()}, True),
        ("action", {"dtype": "float64"}, False),
    ],
)
def test_other_spaces_than_gymnasiums_are_refused(monkeypatch, open_envs, what, changes, is_refused):
    """Types of floating-point numbers are converted, everything else has to agree."""
    gymnasiums = envpool_envs.make_gymnasium_env

    def other_env_spec(*args):
        given = env_spec(*args)
        return dataclasses.replace(given, **{what: dataclasses.replace(getattr(given, what), **changes)})

    env_spec, twin = envpool_envs.env_spec, gymnasiums("MountainCarContinuous-v0")
    monkeypatch.setattr(envpool_envs, "make_gymnasium_env", lambda *_: twin)
    monkeypatch.setattr(envpool_envs, "env_spec", other_env_spec)
    if not is_refused:
        assert open_envs("MountainCarContinuous-v0", 2).spec.action.dtype == "float32"
        return
    message = rf"^--env-id MountainCarContinuous-v0: EnvPool's {what}s \(.*\) are not those of Gymnasium \(.*\), .*"
    with pytest.raises(ConfigError, match=message):
        open_envs("MountainCarContinuous-v0", 2)
