"""Runs in environments that step as batches: the commands of docs/batched.md, whole games, and resumed runs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from fabric_ppo.config import Config
from fabric_ppo.tools.flags import parse_flags
from tests.fixtures.launching import ROOT, clean_environment, command, run
from tests.fixtures.processes import PATIENCE

pytestmark = pytest.mark.processes

PAGE = ROOT / "docs" / "batched.md"
TINY = (
    "--num-steps",
    "16",
    "--num-envs",
    "12",
    "--total-timesteps",
    "192",
    "--update-epochs",
    "1",
    "--test-episodes",
    "2",
)


def blocks(language):
    """Fenced blocks of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def commands():
    """Commands that train; simulators are those of `tests/unit/envs/test_simulators.py`."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("python ")]
    return [shlex.split(line) for line in lines if "my_sims" not in line]


def summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_of_the_page_train(words, tmp_path):
    """Tiny, with the page's modules where the page says that they are; the environments are made as the flags say."""
    for name, content in (("my_batch", "class Corridor"), ("my_games", "class Hunt")):
        (tmp_path / f"{name}.py").write_text(next(block for block in blocks("python") if content in block))
    config = parse_flags(Config, words[2:])
    done = subprocess.run(
        [sys.executable, str(ROOT / words[1]), *words[2:], *TINY, "--run-dir", "run"],
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    used = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (used["env_id"], used["env_backend"]) == (config.env_id, "vector")


def test_a_policy_of_a_batch_is_evaluated_and_recorded(tmp_path):
    done = run(command("torch", 0, "--env-id", "tensor/CartPole-v1", *TINY, "--run-dir", "run"), tmp_path)
    assert done.returncode == 0, done.stderr
    evaluate = [sys.executable, "-m", "fabric_ppo", "evaluate", "run", "--episodes", "3", "--json"]
    done = run([*evaluate, "--video"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["returns"]) == 3
    assert [path.name for path in (tmp_path / "run" / "test_videos").glob("*.mp4")] == ["rl-video-episode-0.mp4"]


@pytest.mark.parametrize(
    ("env_id", "why"),
    [
        ("tests.fixtures.batches:Counting", "a VectorEnv cannot bring an episode back"),
        ("tests.fixtures.games:Relay", "a game of several agents cannot be brought back"),
    ],
)
def test_a_resumed_run_says_what_it_cannot_bring_back(tmp_path, env_id, why):
    flags = ["--env-id", env_id, *TINY, "--run-dir", "run"]
    done = run(command("torch", 0, *flags), tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(command("torch", 0, *flags, "--resume", "--total-timesteps", "384"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert why in done.stderr
    assert summary(tmp_path / "run")["exact_resume"] is False
    assert summary(tmp_path / "run")["env_steps"] <= 384


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--env-id", "tensor/CartPole-v1", "--env-backend", "async"], "exists as a batch only"),
        (["--env-id", "tensor/CartPole-v1", "--frame-stack", "2"], "--frame-stack 2"),
        (["--env-id", "tests.fixtures.games:Relay", "--num-envs", "4"], "--num-envs 4: a multiple of 3 is expected"),
        (["--env-id", "tests.fixtures.batches:Nothing"], "tests.fixtures.batches"),
        (["--env-id", "tensor/CartPole-v1", "--env-preset", "atari"], "--env-preset atari: tensor/CartPole-v1 steps"),
        (["--env-id", "tests.fixtures.functional:Blind", "--capture-video"], "does not render rgb_array"),
        (["--env-id", "tensor/Cartpole-v1"], "tensor/CartPole-v1"),
        (["--env-id", "mpe2.simple_spread_v3"], "did you mean mpe2.simple_spread_v3:parallel_env?"),
        (["--env-id", "LunarLander-v3", "--env-backend", "vector"], "LunarLander-v3: cannot be made"),
        (["--env-id", "tests.fixtures.batches:Counting", "--env-kwargs", '{"mode": "NEVER"}'], "cannot be made"),
    ],
)
def test_bad_input_is_one_line(tmp_path, flags, said):
    done = run(command("torch", 0, *TINY, *flags, "--run-dir", "run"), tmp_path)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert said in lines[0]
    assert not (tmp_path / "run").exists()
