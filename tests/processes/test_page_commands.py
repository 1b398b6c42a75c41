"""Commands of the documentation, run as they stand.

Each runs in a folder of its own, with flags appended that make it tiny (the last of a repeated flag wins). Commands
that differ in flags only are run once, with the flags of the longest one; `unit/test_pages.py` parses the others.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fabric_ppo.tools import cli
from tests.fixtures.launching import BIN, ROOT, clean_environment, free_port
from tests.fixtures.logged_runs import write_run
from tests.fixtures.pages import (
    TEXT,
    TRAINING,
    fences,
    is_for_several_hosts,
    kind_of,
    of_kind,
    parsed,
    script_of,
    split_variables,
    table_rows,
)
from tests.fixtures.processes import PATIENCE

TINY = (
    "--num-steps",
    "16",
    "--num-envs",
    "2",
    "--total-timesteps",
    "128",
    "--update-epochs",
    "1",
    "--test-episodes",
    "1",
)


PICTURES = ("docs/lander.gif", "docs/curve.svg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clone's scripts, to run commands in; they use the package of this one."""
    path = tmp_path_factory.mktemp("readme")
    for script in ROOT.glob("train_*.py"):
        shutil.copy(script, path)
    (path / "docs").mkdir()
    shutil.copytree(ROOT / "configs", path / "configs")
    return path


def environment() -> dict[str, str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return clean_environment(PATH=path, PYTHONPATH=str(ROOT), SDL_VIDEODRIVER="dummy", SDL_AUDIODRIVER="dummy")


def run_here(words: list[str], folder: Path, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    variables, words = split_variables(words)
    if words[0] in ("python", "python3"):
        words = [sys.executable, *words[1:]]
    return subprocess.run(
        words, cwd=folder, env=environment() | variables, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def train(folder):
    """Runs a command that trains, tiny, once: its outcome and the run folder that it made in logs/, if any."""
    outcomes = {}

    def trained(words: list[str]) -> tuple[subprocess.CompletedProcess[str], Path | None]:
        key = tuple(words)
        if key not in outcomes:
            before = {*folder.glob("logs/*/*"), *folder.glob("runs/*")}
            # fabric run's port is always the same one: another test run on this machine may hold it
            port = [f"--main-port={free_port()}"] if words[0] == "fabric" else []
            done = run_here([*words[:2], *port, *words[2:], *TINY], folder)
            made = {*folder.glob("logs/*/*"), *folder.glob("runs/*")} - before
            assert len(made) <= 1
            outcomes[key] = done, next(iter(made), None)
        return outcomes[key]

    return trained


@pytest.fixture(scope="module")
def run_dir(folder, train):
    """A trained agent's folder, made by one of the commands; relative to where they run."""
    done, made = train(["python", "train_torch.py"])
    assert done.returncode == 0, done.stderr
    return str(made.relative_to(folder))


def to_run() -> list[list[str]]:
    """Of commands that are the same but for flags, the longest; of `python -m fabric_ppo train`, the raw PyTorch one.

    What the others of those launch is parsed by `test_the_command_line_launches_a_command_of_the_page`.
    """
    longest: dict[tuple[str, ...], list[str]] = {}
    for words in of_kind(*TRAINING):
        if is_for_several_hosts(words) or (kind_of(words) == "train" and script_of(words)[0] != "torch"):
            continue
        key = (*script_of(words)[1], "--cuda" if "--cuda" in words else "")
        longest[key] = max(longest.get(key, []), words, key=len)
    return list(longest.values())


@pytest.mark.parametrize("words", to_run(), ids=" ".join)
def test_commands_that_train_run(words, folder, train):
    wanted = parsed(words)
    done, made = train(words)
    if wanted.cuda and torch.cuda.device_count() == 0:
        assert done.returncode != 0
        assert re.search("^error: --cuda: 1 CUDA device is needed here, 0 found$", done.stderr, re.MULTILINE)
        assert made is None
        return
    assert done.returncode == 0, done.stderr
    assert str(made.parent.relative_to(folder)) + "/" in TEXT
    text = (made / "summary.json").read_text()
    assert f'"world_size": {wanted.ranks},' in text
    assert f'"env_id": "{wanted.config.env_id}"' in text
    videos = [next((made / name).glob("*.mp4"), None) for name in ("train_videos", "test_videos")]
    assert all(videos) == wanted.config.capture_video


def test_the_run_folder_is_as_listed(folder, run_dir):
    rows = table_rows("| file | content |")
    listed = [name for row in rows if "--capture-video" not in row[1] for name in re.findall(r"`([^`]+)`", row[0])]
    found = sorted(path.name for path in (folder / run_dir).iterdir())
    assert len(found) == len(listed)
    for pattern in listed:
        assert len(list((folder / run_dir).glob(pattern))) == 1
    line = (folder / run_dir / "metrics.jsonl").read_text()
    tags = set(re.findall(r'"([A-Z]\w+/\w+)"', line))
    assert tags
    assert all(f"`{tag}`" in TEXT for tag in tags)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A folder with logs of two environments: real ones have times in common only where a machine is as fast."""
    place = tmp_path_factory.mktemp("compared")
    (place / "docs").mkdir()
    for env_id in ("CartPole-v1", "Acrobot-v1"):
        for seed in (1, 2):
            kl = {"Info/approx_kl": [0.01, 0.02, 0.01]}
            folder = place / f"logs/torch_logs/{env_id}_{seed}"
            write_run(folder, [1.0, 2.0, 3.0 + seed], [4.0, 5.0], metrics=kl, env_id=env_id, seed=seed)
    return place


@pytest.mark.parametrize("words", of_kind("evaluate", "imitate", "plot", "presets", "runs", "compare"), ids=" ".join)
def test_commands_for_afterwards_run(words, folder, run_dir, compared, monkeypatch, capsys):
    """In this process: `python -m fabric_ppo` is `cli.main`, which another test starts as a process."""
    args = [word.replace("RUN_DIR", run_dir) for word in words[3:]]
    if args[0] == "evaluate":
        args += ["--episodes", "3"]
    folder = compared if args[0] in ("plot", "compare") and "logs" in args else folder
    monkeypatch.chdir(folder)
    before = set(folder.rglob("*"))
    assert cli.main(args) == 0
    said = capsys.readouterr().out
    if "--json" in args:
        json.loads(said)
    for option in ("--gif", "--out"):
        if option in args and args[0] != "imitate":
            assert args[args.index(option) + 1] in PICTURES
            assert (folder / args[args.index(option) + 1]).stat().st_size > 0
    if "--video" in args:
        assert any(path.suffix == ".mp4" for path in set(folder.rglob("*")) - before)


def test_python_runs(folder, run_dir, monkeypatch):
    monkeypatch.chdir(folder)
    for block in fences("python"):
        exec(compile(block.replace('"RUN_DIR"', repr(run_dir)), "page", "exec"), {})


def test_the_environment_of_ones_own(folder):
    """As the page says: its file, the command that trains in it, the one that evaluates."""
    blocks = [block for block in fences("python") if "gymnasium.register(" in block]
    (block,) = blocks
    (folder / "my_envs.py").write_text(block)
    (train,) = re.findall(r"`(python train_torch.py --env-id my_envs:[^`]+)`", TEXT)
    (evaluate,) = set(re.findall(r"`(python -m fabric_ppo evaluate RUN_DIR --own-code)`", TEXT))
    done = run_here([*train.split(), *TINY, "--run-dir", "runs/own"], folder)
    assert done.returncode == 0, done.stderr
    done = run_here([*evaluate.replace("RUN_DIR", "runs/own").split(), "--episodes", "2", "--json"], folder)
    assert done.returncode == 0, done.stderr
    assert '"episodes": 2' in done.stdout
    (elsewhere := folder / "elsewhere").mkdir()
    assert "`evaluate RUN_DIR --code-dir FOLDER`" in TEXT
    words = ["python", "-m", "fabric_ppo", "evaluate", str(folder / "runs/own"), "--episodes", "2", "--json"]
    refused = run_here([*words, "--own-code"], elsewhere)
    assert refused.returncode == 2
    assert f"evaluate --code-dir {folder}, or PYTHONPATH={folder}, imports from there" in refused.stderr
    assert run_here([*words, "--code-dir", ".."], elsewhere).stdout == done.stdout


def test_tensorboard_finds_the_runs(folder, run_dir):
    """Instead of serving the curves, `--inspect` lists them."""
    (words,) = of_kind("tensorboard")
    said = run_here([*words, "--inspect"], folder)
    assert said.returncode == 0, said.stderr
    assert run_dir in said.stdout
    assert "Loss/policy_loss" in said.stdout
