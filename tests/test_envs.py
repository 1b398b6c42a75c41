"""Both backends of environments, held against the contract in `envs/base.py`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

from fabric_ppo.config import Config
from fabric_ppo.envs.make import make_envs
from fabric_ppo.envs.spaces import ActionConverter
from fabric_ppo.process.errors import ConfigError, EnvironmentFault
from fabric_ppo.seeding import episode_seed
from tests.toy_envs import MODULE, OBSERVATIONS, decode, encode, toy_env, toy_reward

SEED = 3
ROOT = Path(__file__).parents[1]
SECONDS_TO_FAIL = 8.0


@pytest.fixture(params=["sync", "async"])
def backend(request):
    return request.param


@pytest.fixture
def open_envs(backend):
    """Make environments as a run does; close them at the end."""
    opened = []

    def open_(env_id, num_envs, rank=0, num_ranks=1, backend=backend, **flags):
        config = Config(env_id=env_id, env_backend=backend, num_envs=num_envs, seed=SEED, **flags)
        opened.append(make_envs(config, rank, num_ranks))
        return opened[-1]

    yield open_
    for process in multiprocessing.active_children():
        process.kill()
    for envs in opened:
        envs.close()


def reset(envs):
    """First observations, `[N, ...]`."""
    obs = np.full((envs.num_envs, *envs.spec.observation.shape), 77, envs.spec.observation.dtype)
    envs.reset(obs)
    return obs


def step(envs, actions):
    """One step of stored `actions`; every output array holds nonsense beforehand."""
    n = envs.num_envs
    out = SimpleNamespace(
        obs=np.full((n, *envs.spec.observation.shape), 77, envs.spec.observation.dtype),
        rewards=np.full(n, 77, np.float32),
        terminated=np.full(n, True),
        truncated=np.full(n, True),
        valid=np.full(n, False),
    )
    converted = ActionConverter(envs.spec.action)(np.asarray(actions))
    out.finals = envs.step(converted, out.obs, out.rewards, out.terminated, out.truncated, out.valid)
    return out


def zeros(envs):
    """Stored actions, all zero."""
    return np.zeros((envs.num_envs, *envs.spec.action.shape), np.int64)


def run_into_fault(envs, steps=20):
    """Step until it fails; the fault and the seconds that the failing call took."""
    started = time.perf_counter()
    with pytest.raises(EnvironmentFault) as caught:  # noqa: PT012
        reset(envs)
        for _ in range(steps):
            started = time.perf_counter()
            step(envs, zeros(envs))
    return str(caught.value), time.perf_counter() - started


def close_in_time(envs, seconds=SECONDS_TO_FAIL):
    """Close; fail, with the workers killed so that the test can end, where that does not come to an end."""
    thread = threading.Thread(target=envs.close)
    thread.start()
    thread.join(seconds)
    hangs = thread.is_alive()
    if hangs:
        for process in multiprocessing.active_children():
            process.kill()
        thread.join()
    assert not hangs, f"close() took more than {seconds} s"


# what a step returns


@pytest.mark.parametrize("ends", ["terminated", "truncated", "both"])
@pytest.mark.parametrize("kind", list(OBSERVATIONS))
def test_same_step_autoreset(open_envs, kind, ends):
    """Where an episode ends: its flags, its final observation, and at once the next episode's first."""
    length, rank, num_ranks, num_envs = 3, 1, 2, 3
    envs = open_envs(toy_env(length=length, ends=ends, observation=kind), num_envs, rank, num_ranks)

    def seed_of(local, episode):
        return episode_seed(SEED, rank * num_envs + local, episode, num_ranks * num_envs)

    expected = np.stack([encode(kind, seed_of(i, 0), 0) for i in range(num_envs)])
    first = reset(envs)
    assert first.dtype == expected.dtype
    np.testing.assert_array_equal(first, expected)
    for t in range(3 * length + 1):
        episode, at = divmod(t, length)
        actions = (np.arange(num_envs) + t) % 3
        got = step(envs, actions)
        ended = at == length - 1
        now = (episode + 1, 0) if ended else (episode, at + 1)
        expected = np.stack([encode(kind, seed_of(i, now[0]), now[1]) for i in range(num_envs)])
        np.testing.assert_array_equal(got.obs, expected)
        np.testing.assert_array_equal(got.rewards, [toy_reward(at, action) for action in actions])
        assert got.terminated.tolist() == [ended and ends != "truncated"] * num_envs
        assert got.truncated.tolist() == [ended and ends != "terminated"] * num_envs
        assert got.valid.all()
        assert [final.env for final in got.finals] == (list(range(num_envs)) if ended else [])
        for final in got.finals:
            np.testing.assert_array_equal(final.obs, encode(kind, seed_of(final.env, episode), length))


def test_only_the_environment_that_ended_starts_anew(open_envs):
    """CartPole's episodes end at different times; each final observation belongs to the row of its flag."""
    envs = open_envs("CartPole-v1", 4)
    reset(envs)
    partly = 0
    for t in range(60):
        got = step(envs, np.array([0, 1, t % 2, t // 2 % 2]))
        ended = got.terminated | got.truncated
        assert [final.env for final in got.finals] == np.flatnonzero(ended).tolist()
        fresh = (np.abs(got.obs) <= 0.05).all(axis=1)  # CartPole starts every entry within 0.05
        assert fresh[ended].all()
        partly += ended.any() and not ended.all()
        for final in got.finals:
            assert abs(final.obs[0]) > 2.4 or abs(final.obs[2]) > 0.2095  # where CartPole falls
    assert partly > 2


def test_observations_do_not_change_afterwards(open_envs):
    """A final observation stays, also where the environment writes all its observations into the same memory."""
    envs = open_envs(toy_env(length=2, ends="truncated", reuses_memory=True), 2)
    reset(envs)
    step(envs, zeros(envs))
    finals = step(envs, zeros(envs)).finals
    step(envs, zeros(envs))
    assert [decode("float32", final.obs) for final in finals] == [(episode_seed(SEED, i, 0, 2), 2) for i in range(2)]


def test_no_two_environments_share_an_episode_seed(open_envs):
    """Over ranks, environments and episodes; and training's seeds leave the bit of test episodes alone."""
    num_ranks, num_envs, episodes, seen = 2, 3, 4, []
    for rank in range(num_ranks):
        envs = open_envs(toy_env(length=1), num_envs, rank, num_ranks)
        obs = [reset(envs)] + [step(envs, zeros(envs)).obs for _ in range(episodes - 1)]
        seen += [decode("float32", row)[0] for rows in obs for row in rows]
    assert len(set(seen)) == len(seen) == num_ranks * num_envs * episodes
    assert all(0 <= seed < 2**30 for seed in seen)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "LunarLander-v3", "BipedalWalker-v3"])
def test_an_episode_is_a_function_of_its_seed_and_actions(open_envs, env_id):
    """Bit for bit what a plain loop gives (in either backend, so the same in both), in a new environment each time."""
    rank, num_ranks, num_envs, steps = 1, 2, 2, 250
    envs = open_envs(env_id, num_envs, rank, num_ranks)
    space = gymnasium.make(env_id).action_space
    rng = np.random.default_rng(0)
    is_discrete = envs.spec.action.kind == "discrete"
    drawn = (lambda shape: rng.integers(0, space.n, shape)) if is_discrete else (lambda shape: rng.normal(0, 3, shape))
    actions = drawn((steps, num_envs, *space.shape))
    got_obs, got = [reset(envs)], []
    for each in actions:
        got.append(step(envs, each))
        got_obs.append(got[-1].obs)
    ended = 0
    for local in range(num_envs):
        episode = 0
        plain, obs = start_plain(env_id, rank * num_envs + local, episode, num_ranks * num_envs)
        np.testing.assert_array_equal(got_obs[0][local], obs)
        for t in range(steps):
            action = actions[t, local]
            action = action if is_discrete else np.clip(action.astype(np.float32) * space.high, space.low, space.high)
            obs, reward, terminated, truncated, _ = plain.step(action)
            if terminated or truncated:
                (final,) = (final for final in got[t].finals if final.env == local)
                np.testing.assert_array_equal(final.obs, obs)
                ended, episode = ended + 1, episode + 1
                plain, obs = start_plain(env_id, rank * num_envs + local, episode, num_ranks * num_envs)
            np.testing.assert_array_equal(got_obs[t + 1][local], obs)
            assert got[t].rewards[local] == np.float32(reward)
            assert (got[t].terminated[local], got[t].truncated[local]) == (terminated, truncated)
    assert ended >= 2


def start_plain(env_id, env, episode, total_envs):
    """A new environment at the start of an episode, and its first observation."""
    plain = gymnasium.make(env_id)
    return plain, plain.reset(seed=episode_seed(SEED, env, episode, total_envs))[0]


# actions

STORED = {
    "discrete": [0, 2, 1],
    "discrete_start": [0, 2, 1],
    "multi_discrete": [[0, 0, 0], [1, 2, 3], [0, 1, 2]],
    "multi_discrete_2d": [[[0, 0], [0, 0], [0, 0]], [[1, 2], [3, 1], [2, 2]], [[0, 1], [2, 0], [1, 2]]],
    "multi_binary": [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 1, 0]],
    "multi_binary_2d": [[[0, 0, 0], [0, 0, 0]], [[1, 0, 1], [0, 0, 1]], [[1, 1, 1], [1, 1, 0]]],
    "box": [[-5.0, -5.0], [5.0, 5.0], [0.125, 1.5]],
    "box_half": [[[-5.0, -5.0]], [[5.0, 5.0]], [[0.25, 0.75]]],
    "box_unbounded": [[-1e3, 1e3], [0.0, 0.5], [7.0, -7.0]],
}
TAKEN = STORED | {
    "discrete_start": [5, 7, 6],
    "multi_discrete": [[0, -1, 7], [1, 1, 10], [0, 0, 9]],
    "multi_discrete_2d": [[[0, 1], [-2, 0], [5, 6]], [[1, 3], [1, 1], [7, 8]], [[0, 2], [0, 0], [6, 8]]],
    "box": [[-1.0, -0.5], [0.25, 2.0], [-0.296875, 2.0]],  # 0.125 x 0.625 - 0.375
    "box_half": [[[-5.0, 0.0]], [[0.5, 5.0]], [[0.25, 0.75]]],
}


@pytest.mark.parametrize("kind", list(STORED))
def test_actions_reach_the_environment_converted(open_envs, kind):
    """From `start` up, stretched over bounds, clipped, in shape; the environment refuses what it does not take."""
    envs = open_envs(toy_env(action=kind), 3)
    reset(envs)
    got = step(envs, STORED[kind])
    np.testing.assert_array_equal(got.rewards, np.float32([toy_reward(0, action) for action in TAKEN[kind]]))


def test_an_environment_cannot_change_stored_actions(open_envs):
    """`collect` hands over arrays that may share memory with what it keeps; an environment may scribble on them."""
    envs = open_envs(toy_env(action="multi_discrete", scribbles=True), 2)
    reset(envs)
    stored = np.zeros((2, 3), np.int64)
    step(envs, stored)
    np.testing.assert_array_equal(stored, 0)


# faults


@pytest.mark.parametrize("episode", [0, 2])
@pytest.mark.parametrize("fault", ["raise", "nan_obs", "inf_obs", "nan_reward", "inf_reward"])
def test_a_fault_is_named(open_envs, fault, episode):
    """The message's first line names the global environment, the episode's seed and the step (the first is 1)."""
    at, length, env, num_envs = 2, 4, 4, 3  # global environment 4 is local environment 1 of rank 1
    bad_seed = episode_seed(SEED, env, episode, 2 * num_envs)
    env_id = toy_env(length=length, fault=fault, at=at, only_seed=bad_seed)
    envs = open_envs(env_id, num_envs, rank=1, num_ranks=2)
    reset(envs)
    for _ in range(length * episode + at):
        step(envs, zeros(envs))
    with pytest.raises(EnvironmentFault) as caught:
        step(envs, zeros(envs))
    message = str(caught.value)
    first_line = message.splitlines()[0]
    assert first_line.startswith(f"{env_id} environment {env}, episode seed {bad_seed}, step {at + 1}: ")
    if fault == "raise":
        assert first_line.endswith("ToyError: told to raise")
        assert "in _raise_deep_inside" in message  # the environment's own traceback, to its innermost frame
        assert "toy_envs.py" in message
    else:
        assert "not finite" in message
        assert {"n": "nan", "i": "inf"}[fault[0]] in message
    close_in_time(envs)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("fault", ["nan_obs", "inf_obs"])
def test_one_entry_that_is_not_finite_is_enough(open_envs, kind, fault):
    envs = open_envs(toy_env(observation=kind, fault=fault, at=0), 1)
    assert "not finite" in run_into_fault(envs, steps=1)[0]


@pytest.mark.parametrize("episode", [0, 1])
def test_reset_that_raises_is_named(open_envs, episode):
    bad_seed = episode_seed(SEED, 1, episode, 2)
    env_id = toy_env(length=2, fault="raise_reset", only_seed=bad_seed)
    message, _ = run_into_fault(open_envs(env_id, 2))
    place = f"{env_id} environment 1, episode seed {bad_seed}, step 0: reset raised "
    assert message.splitlines()[0] == place + "ToyError: told to raise in reset"
    assert "in reset" in message


class Odd(gymnasium.Env):
    """Returns what it was told to: `obs` and `reward` of every step, and `first` from reset."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, obs=(0, 0, 0), reward=0.0, first=(0, 0, 0), render_mode=None):
        self.obs, self.reward, self.first = obs, reward, first

    def reset(self, *, seed=None, options=None):
        return np.array(self.first, np.float32), {}

    def step(self, action):
        return np.array(self.obs, np.float32), self.reward, False, False, {}


def odd_env(**options):
    gymnasium.registry.pop("Odd-v0", None)
    gymnasium.register("Odd-v0", entry_point=Odd, kwargs=options)
    return "Odd-v0"


def test_large_numbers_are_finite(open_envs):
    """Entries whose squares overflow are no fault."""
    envs = open_envs(odd_env(obs=(1e30, -3e38, 0), first=(3e38, 3e38, 3e38)), 1)
    np.testing.assert_array_equal(reset(envs), np.float32([[3e38, 3e38, 3e38]]))
    np.testing.assert_array_equal(step(envs, [0]).obs, np.float32([[1e30, -3e38, 0]]))


@pytest.mark.parametrize(
    "options",
    [
        {"first": (0, np.nan, 0)},
        {"reward": 1e39},  # infinite as float32, which is what a rollout keeps
        {"reward": None},
        {"obs": (1, 2)},
        {"obs": (1,)},  # NumPy would broadcast it
        {"first": (1, 2, 3, 4)},
    ],
    ids=str,
)
def test_what_no_environment_may_return_is_a_fault(open_envs, options):
    """A nan at reset, a reward that is no float32, an observation of another shape than the space's."""
    message, _ = run_into_fault(open_envs(odd_env(**options), 2), steps=1)
    assert "environment 0, episode seed " in message


# workers


def exists(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def open_workers(open_envs):
    """`open_envs` with worker processes, and their ids."""

    def open_(*args, **kwargs):
        before = {process.pid for process in multiprocessing.active_children()}
        envs = open_envs(*args, backend="async", **kwargs)
        return envs, [process.pid for process in multiprocessing.active_children() if process.pid not in before]

    return open_


only_async = pytest.mark.parametrize("backend", ["async"])


@only_async
def test_no_worker_survives_close(open_workers):
    envs, pids = open_workers("CartPole-v1", 3)
    reset(envs)
    assert len(pids) == 3
    assert all(exists(pid) for pid in pids)
    close_in_time(envs)
    assert not any(exists(pid) for pid in pids)
    envs.close()  # a second call does nothing


@only_async
@pytest.mark.parametrize("fault", ["raise", "exit", "exit_reset", "hang"])
def test_a_failing_worker_is_noticed_and_none_survives(open_workers, fault):
    """Within the timeout where it hangs, at once where it died; then `close` ends them all within seconds."""
    env = 4
    bad_seed = episode_seed(SEED, env, 1 if fault == "exit_reset" else 0, 6)
    env_id = toy_env(fault=fault, at=1, only_seed=bad_seed)
    envs, pids = open_workers(env_id, 3, 1, 2, env_timeout=0.5)
    message, seconds = run_into_fault(envs)
    assert seconds < SECONDS_TO_FAIL
    assert f"{env_id} environment {env}" in message
    if fault.startswith("exit"):
        assert "exit code 7" in message
    if fault == "hang":
        assert seconds >= 0.5
        assert "0.5 s" in message
    close_in_time(envs)
    assert not any(exists(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="workers learn of it from the Linux kernel")
def test_workers_end_with_their_parent(tmp_path):
    """Also where the parent is killed and they are in the middle of a step."""
    script = """if True:
        import multiprocessing, sys
        import numpy as np
        from fabric_ppo.config import Config
        from fabric_ppo.envs import make_envs
        import tests.toy_envs
        envs = make_envs(Config(env_id="ToyHang-v0", env_backend="async", num_envs=2), 0, 1)
        envs.reset(np.zeros((2, 2, 2), np.float32))
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
        rows = [np.zeros(2, np.float32)] + [np.zeros(2, bool) for _ in range(3)]
        for _ in range(4):
            envs.step(np.zeros(2, np.int64), np.zeros((2, 2, 2), np.float32), *rows)
    """
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with parent.stdout:
        pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    time.sleep(0.3)
    assert all(exists(pid) for pid in pids)
    parent.kill()
    parent.wait()
    deadline = time.perf_counter() + SECONDS_TO_FAIL
    while any(exists(pid) for pid in pids) and time.perf_counter() < deadline:
        time.sleep(0.05)
    survivors = [pid for pid in pids if exists(pid)]
    for pid in survivors:
        os.kill(pid, signal.SIGKILL)
    assert not survivors


@only_async
def test_the_largest_timeout_that_a_config_takes_works(open_envs):
    envs = open_envs("CartPole-v1", 1, env_timeout=1e9)
    reset(envs)


# what can be made, and what cannot


def test_an_id_may_name_the_module_that_registers_it(backend):
    """As `gymnasium.make` has it: `module:Env-v0`, in a process that has not imported the module."""
    script = f"""if True:
        import sys
        import numpy as np
        from fabric_ppo.config import Config
        from fabric_ppo.envs import make_envs
        envs = make_envs(Config(env_id="{MODULE}:ToyUint8-v0", env_backend="{backend}", num_envs=1, seed=5), 0, 1)
        obs = np.zeros((1, 2, 3), np.uint8)
        envs.reset(obs)
        envs.close()
        print(*obs.flatten().tolist())
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    obs = [int(word) for word in done.stdout.split()]
    assert decode("uint8", obs) == (episode_seed(5, 0, 0, 1), 0)


def test_an_environment_need_not_know_of_rendering(open_envs):
    """`gymnasium.make` passes on what it is given: an environment without a `render_mode` gets none."""
    envs = open_envs("NoArguments-v0", 1)
    assert np.abs(reset(envs)).max() > 0


@pytest.mark.parametrize(
    ("env_id", "reason"),
    [("BrokenConstructor-v0", "told to raise"), ("TextInDict-v0", "observation space Text(1, 4,")],
)
def test_what_cannot_be_made_is_a_config_error(open_envs, env_id, reason):
    with pytest.raises(ConfigError) as caught:
        open_envs(env_id, 2)
    message = str(caught.value)
    assert message.startswith(f"--env-id {env_id}: ")
    assert "\n" not in message
    assert reason in message
    assert not multiprocessing.active_children()
