"""Worker processes of environments, in programs of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fabric_ppo.seeding import episode_seed
from tests.fixtures.launching import ROOT
from tests.fixtures.processes import alive, wait_until
from tests.fixtures.toy_envs import MODULE, decode


@pytest.mark.skipif(sys.platform != "linux", reason="workers learn of it from the Linux kernel")
def test_workers_end_with_their_parent(tmp_path):
    """Also where the parent is killed and they are in the middle of a step."""
    script = """if True:
        import multiprocessing, sys
        import numpy as np
        from fabric_ppo.config import Config
        from fabric_ppo.envs.make import make_envs
        import tests.fixtures.toy_envs
        envs = make_envs(Config(env_id="ToyHang-v0", env_backend="async", num_envs=2), 0, 1)
        envs.reset(np.zeros((2, 2, 2), np.float32))
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
        rows = [np.zeros(2, np.float32)] + [np.zeros(2, bool) for _ in range(3)]
        for _ in range(4):
            envs.step(np.zeros(2, np.int64), np.zeros((2, 2, 2), np.float32), *rows)
    """
    env = os.environ | {"HANGS_DIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    with parent.stdout:
        pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert wait_until(lambda: {path.name for path in tmp_path.iterdir()} == set(map(str, pids)))
    assert all(alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids))
    survivors = [pid for pid in pids if alive(pid)]
    for pid in survivors:
        os.kill(pid, signal.SIGKILL)
    assert not survivors


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
