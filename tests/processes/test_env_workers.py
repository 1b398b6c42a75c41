"""Worker processes of environments: how they start, and that nothing of them outlives a run."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.envs import async_envs
from fabric_ppo.envs.make import make_envs
from fabric_ppo.process.errors import ConfigError, EnvironmentFault
from fabric_ppo.seeding import episode_seed
from tests.fixtures.configs import tiny
from tests.fixtures.envs import close_or_fail, env_opener, kill_workers, reset, run_into_fault, step, zeros
from tests.fixtures.launching import ROOT
from tests.fixtures.processes import FOREVER, PATIENCE, alive, wait_until
from tests.fixtures.toy_envs import MODULE, decode
from tests.fixtures.trouble_envs import CHILDREN, noted, trouble

METHODS = ("fork", "forkserver", "spawn")


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture
def open_workers(method):
    """Make environments in worker processes of each kind; close them at the end."""
    with env_opener("async") as open_envs:
        yield lambda *args, **flags: open_envs(*args, env_start_method=method, env_timeout=FOREVER, **flags)
        kill_workers()


def gone(pids):
    """Wait until processes have ended, and say whether they have; those that have not are killed."""
    has_ended = wait_until(lambda: not any(alive(pid) for pid in pids))
    for pid in filter(alive, pids):
        os.kill(pid, signal.SIGKILL)
    return has_ended


@pytest.mark.skipif(sys.platform != "linux", reason="workers learn of it from the Linux kernel")
@pytest.mark.parametrize("child", ["", "pool", "program"])
def test_workers_and_what_they_have_started_end_with_their_parent(tmp_path, method, child):
    """Also where the parent is killed and they are in the middle of a step that lets no thread run."""
    script = f"""if True:
        import numpy as np
        from fabric_ppo.config import Config
        from fabric_ppo.envs.make import make_envs
        from tests.fixtures.trouble_envs import trouble
        env_id = trouble(child={child!r}, does="hang", folder={str(tmp_path)!r})
        envs = make_envs(Config(env_id=env_id, env_backend="async", env_start_method={method!r}, num_envs=2), 0, 1)
        envs.reset(np.zeros((2, 2), np.float32))
        rows = [np.zeros(2, np.float32)] + [np.zeros(2, bool) for _ in range(3)]
        for _ in range(4):
            envs.step(np.zeros(2, np.int64), np.zeros((2, 2), np.float32), *rows)
    """
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    assert wait_until(lambda: len(noted(tmp_path, "hangs")) == 2 or parent.poll() is not None)
    pids = noted(tmp_path, "hangs") + noted(tmp_path, "child")
    assert len(pids) == (4 if child else 2)
    assert all(alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    assert gone(pids)


@pytest.mark.parametrize("child", CHILDREN)
def test_an_environment_may_have_processes_of_its_own(tmp_path, monkeypatch, open_workers, child):
    """They end with it, also where it leaves that to others, and those that it ends notice that it asks them to."""
    monkeypatch.setattr(async_envs, "_EXIT_SECONDS", 0.5)
    monkeypatch.setattr(async_envs, "_CLOSE_SECONDS", FOREVER)
    envs = open_workers(trouble(child=child, folder=str(tmp_path)), 2)
    first = reset(envs)
    got = step(envs, zeros(envs))
    np.testing.assert_array_equal(got.obs, first + np.float32([0, 1]))
    pids = noted(tmp_path, "child")
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    close_or_fail(envs)
    assert gone(pids)


@pytest.mark.parametrize("child", CHILDREN)
def test_a_death_is_noticed_where_a_process_of_the_environments_lives_on(tmp_path, open_workers, child):
    """It holds the worker's end of the pipe. Not after the timeout, which nobody would live to see."""
    envs = open_workers(trouble(child=child, does="exit", folder=str(tmp_path)), 2)
    assert "its worker died, exit code 7" in run_into_fault(envs)
    close_or_fail(envs)
    assert gone(noted(tmp_path, "child"))


@pytest.mark.parametrize("child", CHILDREN)
def test_a_replaced_worker_takes_its_processes_with_it(tmp_path, open_workers, child):
    envs = open_workers(trouble(child=child, folder=str(tmp_path)), 1, restart_envs=True)
    reset(envs)
    step(envs, zeros(envs))
    (before,) = noted(tmp_path, "child")
    (worker,) = noted(tmp_path, "made")
    os.kill(worker, signal.SIGKILL)
    assert step(envs, zeros(envs)).obs[0, 1] == 2
    assert envs.restarts == 1
    assert gone([before])
    assert len(noted(tmp_path, "child")) == 2


@pytest.mark.parametrize("num_envs", [1, 3])
def test_each_environment_is_made_once_and_none_in_this_process(tmp_path, open_workers, num_envs):
    """A simulator behind a port could not be opened twice, and what one has started may not survive a fork."""
    envs = open_workers(trouble(folder=str(tmp_path)), num_envs)
    reset(envs)
    made = noted(tmp_path, "made")
    assert len(made) == num_envs
    assert os.getpid() not in made


@pytest.mark.parametrize("does", ["raise", "sys_exit"])
def test_a_fault_is_worded_as_in_this_process(open_workers, does):
    """But for the traceback, which has the files of the process."""
    env_id = trouble(does=does)
    with env_opener("sync") as open_envs:
        expected = run_into_fault(open_envs(env_id, 2, rank=1, num_ranks=2)).partition("Traceback")[0]
    assert expected.startswith(f"{env_id} environment 2, episode seed ")
    assert run_into_fault(open_workers(env_id, 2, rank=1, num_ranks=2)).partition("Traceback")[0] == expected


@pytest.mark.parametrize("does", ["at_once_raise", "at_once_sys_exit"])
def test_what_cannot_be_made_is_worded_as_in_this_process(open_workers, does):
    env_id = trouble(does=does)
    with pytest.raises(ConfigError) as expected, env_opener("sync") as open_envs:
        open_envs(env_id, 2)
    with pytest.raises(ConfigError) as caught:
        open_workers(env_id, 2)
    assert str(caught.value) == str(expected.value)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("when", ["", "at_once_"])
@pytest.mark.parametrize("does", ["close_stdout", "change_directory", "take_signals"])
def test_what_disturbs_its_own_process_only_is_let_be(open_workers, when, does):
    envs = open_workers(trouble(does=when + does), 2)
    reset(envs)
    for _ in range(12):
        step(envs, zeros(envs))
    close_or_fail(envs)


def test_an_interrupt_that_is_no_users_is_the_environments_fault(open_workers):
    env_id = trouble(does="interrupt")
    message = run_into_fault(open_workers(env_id, 1))
    assert message.startswith(f"{env_id} environment 0")
    assert "KeyboardInterrupt: no user" in message.splitlines()[0]


THREADED = ("tests.fixtures.thread_envs:Threaded-v0", "tests.fixtures.thread_envs:ThreadedStep-v0")


@pytest.mark.parametrize("env_id", THREADED)
def test_a_thread_of_an_environments_module_works_where_workers_import_it_anew(open_workers, method, env_id):
    if method == "fork":
        pytest.skip("it does not survive a fork: see below")
    importlib.import_module("tests.fixtures.thread_envs")
    envs = open_workers(env_id, 2)
    first = reset(envs)
    np.testing.assert_array_equal(step(envs, zeros(envs)).obs, first + np.float32([0, 1]))


@pytest.mark.parametrize("env_id", THREADED)
def test_a_thread_that_does_not_survive_a_fork_has_the_flag_named(monkeypatch, env_id):
    """Whenever the worker first needs it; such a worker never answers."""
    importlib.import_module("tests.fixtures.thread_envs")
    monkeypatch.setattr(async_envs, "_KILL_SECONDS", 0.0)
    message = ""
    with env_opener("async") as open_envs:
        try:
            message = run_into_fault(open_envs(env_id, 1, env_timeout=0.5))
        except ConfigError as error:
            message = str(error)
    assert message.startswith(f"{env_id} environment 0: its worker did not answer within 0.5 s")
    assert "--env-start-method forkserver" in message
    assert "\n" not in message


def test_a_worker_that_has_worked_has_no_such_hint(monkeypatch):
    answer, hangs = async_envs.AsyncEnvs._answer, []
    monkeypatch.setattr(
        async_envs.AsyncEnvs, "_answer", lambda envs, index, seconds: answer(envs, index, 0.1 if hangs else seconds)
    )
    monkeypatch.setattr(async_envs, "_KILL_SECONDS", 0.0)
    with env_opener("async") as open_envs:
        envs = open_envs(trouble(does="hang"), 1, env_timeout=FOREVER)
        reset(envs)
        step(envs, zeros(envs))
        step(envs, zeros(envs))
        hangs.append(True)
        with pytest.raises(EnvironmentFault, match=r"did not answer within 0\.1 s$"):
            step(envs, zeros(envs))


def test_workers_have_the_environment_variables_of_now(monkeypatch, open_workers):
    """Also those of a fork server that has been started before."""
    open_workers(trouble(), 1)
    monkeypatch.setenv("HABIT", "77")
    envs = open_workers(trouble(does="read_environ"), 1)
    reset(envs)
    assert [step(envs, zeros(envs)).obs[0, 0] for _ in range(3)][2] == 77


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_worker_loads_pytorch_for_an_environment_that_asks_for_it_only(open_workers):
    """It takes seconds and 200 MB, in each worker; a trial needs none either."""
    envs = open_workers(trouble(does="look_for_torch"), 1)
    assert envs.try_repeating(PATIENCE) == ""
    reset(envs)
    assert [step(envs, zeros(envs)).obs[0, 0] for _ in range(3)][2] == 0


def test_all_start_methods_give_the_same_bits(tmp_path):
    """As none of them, too."""
    policies = []
    for name in ("sync", *METHODS):
        flags = {} if name == "sync" else {"env_backend": "async", "env_start_method": name}
        run_dir = train(Config(**tiny(env_id="Pendulum-v1", run_dir=str(tmp_path / name), quiet=True), **flags))
        policies.append((run_dir / "policy.safetensors").read_bytes())
    assert len(set(policies)) == 1


MINE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Mine(CartPoleEnv):
    pass

def wrap(env):
    return gymnasium.wrappers.TimeLimit(env, 9)

gymnasium.register("Mine-v0", Mine, max_episode_steps=20)
gymnasium.register("Unpicklable-v0", lambda **named: Mine(**named))
"""


def run_script(folder, text):
    """A script in a folder that has the module `mine`, in a process of its own."""
    (folder / "mine.py").write_text(MINE)
    (folder / "script.py").write_text(text)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "script.py"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=env,
        check=False,
        timeout=PATIENCE,
    )


SCRIPT = """
print("runs")
import {imports}
from fabric_ppo import Config, train
from fabric_ppo.process.errors import ConfigError
flags = dict({flags}, env_backend="async", env_start_method="{method}", quiet=True)
try:
    print(train(Config(run_dir="run", **flags)))
except ConfigError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize(
    ("imports", "named"),
    [
        ("os", {"env_id": "mine:Mine-v0"}),
        ("mine", {"env_id": "Mine-v0"}),
        ("mine as its", {"env_id": "Mine-v0", "env_wrapper": "mine:wrap,gymnasium.wrappers:FlattenObservation"}),
    ],
)
def test_workers_find_what_lies_in_the_working_directory(tmp_path, method, imports, named):
    """Also for a script that does not ask whether it is `__main__`: workers do not run it again."""
    done = run_script(tmp_path, SCRIPT.format(imports=imports, flags=f"**{tiny(**named)}", method=method))
    assert done.stdout.splitlines() == ["runs", str(tmp_path / "run")], done.stderr
    assert not done.stderr


@pytest.mark.parametrize(
    ("imports", "named", "message"),
    [
        (
            "gymnasium, mine\nclass Own(mine.Mine): pass\ngymnasium.register('Own-v0', Own)",
            {"env_id": "Own-v0"},
            "--env-id Own-v0: defined in __main__, which workers of --env-start-method {} do not have; ",
        ),
        (
            "mine\ndef wrap(env): return env",
            {"env_wrapper": "__main__:wrap"},
            "--env-wrapper __main__:wrap: defined in __main__, which workers of --env-start-method {} do not have; ",
        ),
        ("mine", {"env_id": "Unpicklable-v0"}, "--env-id Unpicklable-v0: workers of --env-start-method {} cannot "),
    ],
)
def test_what_workers_cannot_find_is_refused_in_a_line(tmp_path, imports, named, message):
    done = run_script(tmp_path, SCRIPT.format(imports=imports, flags=f"**{tiny(**named)}", method="spawn"))
    (first, second) = done.stdout.splitlines()
    assert first == "runs"
    assert second.startswith("refused: " + message.format("spawn"))
    assert not done.stderr
    assert not (tmp_path / "run").exists()


def test_no_room_for_so_many_processes_is_one_line(monkeypatch):
    start, started = async_envs.AsyncEnvs._start_worker, []

    def start_two(envs, index):
        if index == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        start(envs, index)
        started.extend(process.pid for process in multiprocessing.active_children())

    monkeypatch.setattr(async_envs.AsyncEnvs, "_start_worker", start_two)
    with pytest.raises(
        ConfigError, match=r"^--num-envs 3: .* cannot be started \(.*Resource temporarily unavailable\)$"
    ):
        make_envs(Config(env_id="CartPole-v1", env_backend="async", num_envs=3), 0, 1)
    assert started
    assert not any(alive(pid) for pid in started)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_id_may_name_the_module_that_registers_it(backend):
    """As `gymnasium.make` has it: `module:Env-v0`, in a process that has not imported the module."""
    script = f"""if True:
        import sys
        import numpy as np
        from fabric_ppo.config import Config
        from fabric_ppo.envs.make import make_envs
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
