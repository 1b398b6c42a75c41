"""Programs whose stdout or stderr is closed, a full disk or a reader that has gone: the same result and status."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.fixtures.launching import BIN, ROOT, clean_environment, free_port
from tests.fixtures.processes import PATIENCE

TINY = "--total-timesteps 256 --num-steps 64 --test-episodes 1 --seed 3"
PYTHON = f'"{sys.executable}"'
PPO = f"{PYTHON} -m fabric_ppo"

NOISY = """
import atexit, ctypes, os, subprocess, sys
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

libc = ctypes.CDLL(None)
print("import")
libc.puts(b"import in C")
atexit.register(print, "exit")

class Noisy(CartPoleEnv):
    def __init__(self):
        super().__init__()
        print("constructor")
        subprocess.run(["echo", "child"])

    def reset(self, **options):
        print("reset")
        libc.puts(b"reset in C")
        os.write(1, b"raw")
        return super().reset(**options)

    def step(self, action):
        sys.__stdout__.write("step")
        return super().step(action)

    def close(self):
        libc.puts(b"close in C")

gymnasium.register("Noisy-v0", Noisy, max_episode_steps=20)
"""


def shell(line, folder, **variables):
    """A line of bash, whose status is that of its first failed part."""
    env = clean_environment(PYTHONPATH=str(ROOT)) | variables
    words = ["bash", "-c", f"set -o pipefail; {line}"]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a finished run, `plain`."""
    folder = tmp_path_factory.mktemp("runs")
    done = shell(f"{PYTHON} {ROOT}/train_torch.py {TINY} --run-dir plain", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("streams", ["2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", "--profile 2>&1 | head -0"])
def test_a_training_that_nobody_watches_is_the_same(runs, tmp_path, streams):
    done = shell(f"{PYTHON} {ROOT}/train_torch.py {TINY} --run-dir {tmp_path}/run {streams}", tmp_path)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"where the time went" not in done.stdout
    for name in ("policy.safetensors", "config.yaml"):
        if name == "policy.safetensors" or "--profile" not in streams:
            assert (tmp_path / "run" / name).read_bytes() == (runs / "plain" / name).read_bytes()


@pytest.mark.parametrize(("script", "streams"), [("torch", ">&- 2>&-"), ("fabric", ">&-")])
def test_so_it_is_under_a_launcher(tmp_path, script, streams):
    start = {
        "torch": f"{BIN}/torchrun --nproc_per_node=2 --standalone",
        "fabric": f"{BIN}/fabric run --accelerator=cpu --strategy=ddp --devices=2 --main-port={free_port()}",
    }
    done = shell(f"{start[script]} {ROOT}/train_{script}.py {TINY} --run-dir run {streams}", tmp_path)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert json.loads((tmp_path / "run/summary.json").read_text())["world_size"] == 2


HELPS = (
    f"{PYTHON} {ROOT}/train_fabric.py --help",
    f"{PYTHON} {ROOT}/train_torch.py --help-all",
    f"{PPO} --help",
    f"{PPO} train --help",
    f"{PPO} train torch --help",
    f"{PPO} evaluate --help",
    f"{PPO} presets",
)


@pytest.mark.parametrize("streams", ["| head -1", "| head -0", ">&-", ">/dev/full"])
@pytest.mark.parametrize("program", HELPS, ids=["script", "all", "package", "scripts", "train", "evaluate", "presets"])
def test_a_help_that_nobody_reads_is_status_0(tmp_path, program, streams):
    done = shell(f"{program} {streams}", tmp_path, PYTHONUNBUFFERED="1" if streams == "| head -0" else "")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", "2>&1 | head -0"])
@pytest.mark.parametrize("program", [f"{PYTHON} {ROOT}/train_torch.py --gamma 7", f"{PPO} evaluate nowhere"])
def test_an_error_that_nobody_reads_is_status_2(tmp_path, program, streams):
    done = shell(f"{program} {streams}", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


@pytest.mark.parametrize("words", ["evaluate plain --episodes 2", "plot plain --out curve.svg"])
@pytest.mark.parametrize(("streams", "status"), [(">&-", 0), ("| head -0", 0), ("2>&-", 0), (">/dev/full", 3)])
def test_results_are_lost_in_silence_but_on_a_full_disk(runs, words, streams, status):
    done = shell(f"{PPO} {words} {streams}", runs)
    if words.startswith("evaluate") and status:
        assert done.stderr == b"error: the scores could not be printed (No space left on device)\n"
    else:
        assert done.stderr == b""
        status = 0  # a plot's result is its file
    assert done.returncode == status


def test_a_text_that_the_encoding_does_not_have_is_printed_escaped(runs, tmp_path):
    name = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    done = shell(f"{PYTHON} {ROOT}/train_torch.py {TINY} --run-dir {name}", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert rb"caf\xe9/summary.json" in done.stdout


def test_json_stands_alone(tmp_path):
    (tmp_path / "noisy.py").write_text(NOISY)
    quiet = f"{PYTHON} {ROOT}/train_torch.py --env-id noisy:Noisy-v0 {TINY} --run-dir run --quiet"
    assert shell(quiet, tmp_path).returncode == 0
    for unbuffered in ("", "1"):
        done = shell(f"{PPO} evaluate run --own-code --episodes 2 --json", tmp_path, PYTHONUNBUFFERED=unbuffered)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["episodes"] == 2
        assert done.stdout.count(b"\n") == 1
        for word in (
            b"import",
            b"import in C",
            b"exit",
            b"constructor",
            b"child",
            b"reset in C",
            b"raw",
            b"close in C",
        ):
            assert word in done.stderr
