"""The benchmarks' scripts as processes: limits, settings, counts, tables."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.compare import choose_setting, execute
from benchmarks.install import ROOT
from benchmarks.programs import PEERS, Program, read_counts
from benchmarks.workloads import Contender, Setting, Work, Workload
from tests.fixtures.launching import run
from tests.fixtures.processes import FOREVER, PATIENCE

WORK = Work("CartPole-v1", 1024, num_envs=1, num_steps=128, batch_size=64, epochs=10)


def workload(work: Work = WORK, tolerance: float = 0.0) -> Workload:
    rows = (Contender("ours", "torch", work), Contender("theirs", "sbx", work))
    return Workload("w", "W", work, rows, "", tolerance=tolerance)


def test_a_command_over_its_limit_is_ended(tmp_path):
    """The command would sleep for days; one that is not over its limit gives its status."""
    sleep = f"import time; time.sleep({FOREVER})"
    status, seconds, _ = execute([sys.executable, "-c", sleep], {}, tmp_path, limit=0.5)
    assert status is None
    assert 0.5 <= seconds < FOREVER
    code = "import os; print(os.environ['A'])"
    status, _, said = execute([sys.executable, "-c", code], {"A": "b"}, tmp_path, PATIENCE)
    assert (status, said) == (0, "b\n")


def told(work: Work, seed: int, folder: Path) -> list[str]:
    """Prints the counts that a work should have; `wrong` and with what seconds in which round is a flag's to say."""
    code = (
        "import json, sys; *_, wrong, seconds = ['', '1', *sys.argv[1:]]; "
        f"print(json.dumps(dict(env_steps={work.env_steps} + (wrong == 'wrong'), gradient_steps={work.gradient_steps}, "
        f"train_seconds=float((seconds.split(',') * {seed})[{seed - 1}]))))"
    )
    return [sys.executable, "-c", code]


def test_the_setting_with_the_best_median_is_taken_and_bad_runs_are_told(monkeypatch):
    monkeypatch.setitem(compare.PROGRAMS, "sbx", Program(told))
    seconds = {"slow": "3", "fast": "2", "lucky once": "1,9,9", "wrong": "1"}
    settings = tuple(Setting(name, flags=(name, given)) for name, given in seconds.items())
    contender = replace(workload().contenders[1], settings=settings)
    each = replace(workload(), contenders=(contender,))
    setting, trials = choose_setting(each, contender)
    assert setting.name == "fast"
    assert {trial.setting for trial in trials if trial.problem} == {"wrong"}
    runs, _, skipped, chosen = compare.compare(each, rounds=2)
    assert compare.commands(each, chosen)["theirs"].endswith(" fast 2")
    assert [(each.round, each.problem, each.env_steps) for each in runs] == [(1, "", 1024), (2, "", 1024)]
    assert skipped == {}


def test_the_runner_of_a_script_counts_what_it_does(tmp_path):
    """By a script that takes 3 steps in 2 environments, 5 of an optimizer, and has a module beside it."""
    (tmp_path / "beside.py").write_text("NUM_ENVS = 2\n")
    (tmp_path / "script.py").write_text(
        "import sys, gymnasium, torch\n"
        "from beside import NUM_ENVS\n"
        "if __name__ == '__main__':\n"
        "    assert sys.argv[1:] == ['--flag']\n"
        "    envs = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make('CartPole-v1')] * NUM_ENVS)\n"
        "    envs.reset()\n"
        "    for _ in range(3):\n"
        "        envs.step(envs.action_space.sample())\n"
        "    weight = torch.nn.Parameter(torch.zeros(1))\n"
        "    optimizer = torch.optim.Adam([weight])\n"
        "    for _ in range(5):\n"
        "        weight.square().sum().backward()\n"
        "        optimizer.step()\n"
    )
    done = run([sys.executable, str(PEERS / "run_script.py"), str(tmp_path / "script.py"), "--flag"], tmp_path)
    assert done.returncode == 0, done.stderr
    got = read_counts(tmp_path, done.stdout)
    assert (got.env_steps, got.gradient_steps) == (6, 5)
    assert got.train_seconds > 0


def test_the_runner_counts_the_environments_of_envpool(tmp_path):
    """By a script that takes 3 steps in 2 environments, and, as CleanRL's, has EnvPool in its name."""
    pytest.importorskip("envpool")
    (tmp_path / "ppo_envpool.py").write_text(
        "import envpool, numpy\n"
        "envs = envpool.make('CartPole-v1', env_type='gymnasium', num_envs=2)\n"
        "envs.reset()\n"
        "for _ in range(3):\n"
        "    envs.step(numpy.zeros(2, dtype=int))\n"
    )
    done = run([sys.executable, str(PEERS / "run_script.py"), str(tmp_path / "ppo_envpool.py")], tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_counts(tmp_path, done.stdout).env_steps == 6


def test_a_slow_row_runs_in_the_first_rounds_only(monkeypatch):
    monkeypatch.setitem(compare.PROGRAMS, "torch", Program(told))
    monkeypatch.setitem(compare.PROGRAMS, "sbx", Program(told))
    ours, theirs = workload().contenders
    runs, *_ = compare.compare(replace(workload(), contenders=(ours, replace(theirs, most_rounds=1))), rounds=3)
    assert [(each.row, each.round) for each in runs] == [("ours", 1), ("theirs", 1), ("ours", 2), ("ours", 3)]


def test_a_row_that_does_not_exist_is_told():
    done = run([sys.executable, "-m", "benchmarks.compare", "p1", "--only", "sbx"], ROOT)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "--only sbx: no such row; expected of 'train_fabric.py', 'Stable-Baselines3', 'CleanRL', 'rejax', 'SBX', "
        "'SheepRL'"
    )


SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "argparse" in path.read_text())


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_starts(script):
    done = run([sys.executable, "-m", f"benchmarks.{script}", "--help"], ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("rollout.py", "CartPole-v1", "--num-envs", "2", "--num-steps", "8", "--pairs", "1", "--rollouts", "1"),
        ("update.py", "--rows", "64", "--rounds", "1"),
    ],
)
def test_a_small_measurement_gives_a_table(words):
    pytest.importorskip("envpool")
    done = run([sys.executable, str(ROOT / "benchmarks" / words[0]), *words[1:]], ROOT)
    assert done.returncode == 0, done.stderr
    assert "median" in done.stdout
