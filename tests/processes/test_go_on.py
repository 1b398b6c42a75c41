"""What a run prints as it stops is a command: pasted into a shell, in any folder, it goes on to the same end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fabric_ppo.config import SCRIPT_CONFIGS
from fabric_ppo.run.resolve import resolve
from fabric_ppo.tools.flags import parse_flags
from tests.fixtures import stopping_env
from tests.fixtures.launching import ROOT, clean_environment, command, free_port, in_fork, run_ranks
from tests.fixtures.processes import PATIENCE
from tests.fixtures.resuming import assert_same_run

FLAGS = ["--env-id=stopping_env:Stopping-v0", "--num-steps=16", "--num-envs=2", "--update-epochs=2"]
FLAGS += ["--per-rank-batch-size=11", "--num-threads=1", "--test-episodes=1", "--timestep-unit=iteration"]
FLAGS += ["--total-timesteps=128", "--timeout=1e6", "--gamma=0.97", "--hidden-sizes", "8", "16", "--no-anneal-lr"]

PACKAGE = [sys.executable, "-m", "fabric_ppo", "train"]
FABRIC = ["--accelerator=cpu", "--strategy=ddp", "--devices=2", "--precision=bf16-mixed"]
DECOUPLED = ["--accelerator=cpu", "--devices=3"]
LAUNCHED = {
    "python, torch": (lambda: command("torch", 0), ("torch", 1, None)),
    "torchrun": (lambda: command("torch", 2), ("torch", 2, None)),
    "fabric run": (lambda: _fabric_run(FABRIC, "train_fabric.py"), ("fabric", 2, "bf16-mixed")),
    "fabric run, decoupled": (lambda: _fabric_run(DECOUPLED, "train_fabric_decoupled.py"), ("decoupled", 3, None)),
    "package, fabric": (
        lambda: [*PACKAGE, "fabric", "--devices", "1", "--precision", "bf16-mixed"],
        ("fabric", 1, "bf16-mixed"),
    ),
    "package, decoupled": (lambda: [*PACKAGE, "decoupled", "--devices", "2"], ("decoupled", 2, None)),
}
"""How a run is started, and what that starts: script, number of ranks, precision."""


def _fabric_run(launcher: list[str], script: str) -> list[str]:
    words = command("fabric", 1)[:2]
    return [*words, *launcher, f"--main-port={free_port()}", str(ROOT / script)]


def run_in(folder: Path, words: list[str], *flags: str) -> subprocess.CompletedProcess[str]:
    # a checkout need not be installed
    env = clean_environment(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    args = [*words, *flags]
    return subprocess.run(args, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)


def pasted(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = clean_environment(OMP_NUM_THREADS="1")
    return subprocess.run(text, shell=True, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)


def train_alone(folder: Path, script: str, ranks: int, precision: str | None) -> list[str]:
    """Train in `folder/run` without a stop, in forked ranks; what each raised."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    config = resolve(parse_flags(SCRIPT_CONFIGS[script], [*FLAGS, "--run-dir=run"]), ranks, ranks)
    return run_ranks(script, [config] * ranks, precision)


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """The folder of a run that nothing stopped, made once for each script, number of ranks and precision."""
    folders = {}

    def made(script: str, ranks: int, precision: str | None) -> Path:
        key = (script, ranks, precision)
        if key not in folders:
            folders[key] = folder = tmp_path_factory.mktemp("alone")
            shutil.copy(Path(stopping_env.__file__), folder)
            (folder / "has_stopped").touch()
            assert in_fork(train_alone, folder, *key) == [""] * ranks
        return folders[key] / "run"

    return made


@pytest.fixture
def lab(tmp_path):
    """A folder with spaces and quotes in its name, in which the environment's module lies."""
    folder = tmp_path / 'it\'s a "lab" $HOME'
    folder.mkdir()
    shutil.copy(Path(stopping_env.__file__), folder)
    return folder


@pytest.mark.parametrize(("start", "started"), LAUNCHED.values(), ids=LAUNCHED)
def test_the_command_that_a_stop_prints_goes_on(lab, tmp_path, left_alone, start, started):
    stopped = run_in(lab, start(), *FLAGS, "--run-dir=a run")
    commands = re.findall(r"^stopped by .*; saved .*: go on with (.*)$", stopped.stderr, re.MULTILINE)
    assert len(commands) == 1, stopped.stderr
    (go_on,) = commands
    assert stopped.returncode in (1, 75)  # a launcher's, or a rank's
    typed = start()
    if typed[: len(PACKAGE)] == PACKAGE:  # it names that command, with no port of the launcher's choice
        assert stopped.returncode == 75
        assert f" -m fabric_ppo train {typed[len(PACKAGE)]} " in go_on
        assert "port" not in go_on
    done = pasted(go_on, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed with" not in done.stderr
    alone = left_alone(*started)
    assert_same_run(lab / "a run", alone, resumes=1)
    configs = [yaml.safe_load((run_dir / "config.yaml").read_text()) for run_dir in (lab / "a run", alone)]
    assert configs[0] == configs[1]


def test_a_refused_flag_comes_with_the_command_for_a_new_run(lab, tmp_path):
    """Which trains the policy of the run on, with that flag and the run's others."""
    (lab / "has_stopped").touch()
    run_in(lab, command("torch", 0), *FLAGS, "--run-dir=a run")
    refused = run_in(lab, command("torch", 0), "--run-dir=a run", "--resume", "--learning-rate=0.0005")
    (line,) = refused.stderr.splitlines()
    assert refused.returncode == 2
    assert line.startswith("error: --resume: --learning-rate 0.0005 (the run has 0.001): the run's own values are ")
    assert " --init-from " in line
    done = pasted(line.partition("begin a new run: ")[2], tmp_path)
    assert done.returncode == 0, done.stderr
    (new,) = (lab / "logs/torch_logs").iterdir()
    own, before = (yaml.safe_load((run / "config.yaml").read_text()) for run in (new, lab / "a run"))
    assert own == before | {"learning_rate": 0.0005, "init_from": str(lab / "a run")}


def test_with_other_networks_a_new_run_has_no_policy_to_begin_with(lab, tmp_path):
    (lab / "has_stopped").touch()
    run_in(lab, command("torch", 0), *FLAGS, "--run-dir=a run")
    refused = run_in(lab, command("torch", 0), "--run-dir=a run", "--resume", "--hidden-sizes", "4", "4", "--seed=7")
    (line,) = refused.stderr.splitlines()
    assert "--init-from" not in line
    done = pasted(line.partition("begin a new run: ")[2], tmp_path)
    assert done.returncode == 0, done.stderr
    (new,) = (lab / "logs/torch_logs").iterdir()
    assert yaml.safe_load((new / "config.yaml").read_text())["hidden_sizes"] == [4, 4]
