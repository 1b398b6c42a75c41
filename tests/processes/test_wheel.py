"""The wheel, installed into an environment of its own: its commands run outside of a checkout.

The environment sees the dependencies that are installed here already. With FABRIC_PPO_WHEEL=real,
as in `make wheel-check`, pip installs them as it does for a user, from the package's own list.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.fixtures.launching import ROOT, clean_environment
from tests.fixtures.processes import PATIENCE

IN_THE_WHEEL = ("fabric_ppo", "configs", "LICENSE", "README.md", "pyproject.toml")
TINY = ("--total-timesteps", "256", "--num-envs", "2", "--num-steps", "64", "--test-episodes", "2")


def call(words, folder, **variables):
    """The output of a program that succeeds, away from this checkout."""
    env = clean_environment(**variables)
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: in a checkout, an older build may lie about and get into it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in (*(ROOT / name for name in IN_THE_WHEEL), *ROOT.glob("train_*.py")):
        if path.is_dir():
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    isolated = [] if os.environ.get("FABRIC_PPO_WHEEL") == "real" else ["--no-build-isolation"]
    call([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *isolated, "-w", target, source], target)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """The folder of `python` and `fabric-ppo` in an environment with the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    call([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet"]
    if os.environ.get("FABRIC_PPO_WHEEL") == "real":
        torch = importlib.metadata.version("torch").partition("+")[0]
        call([*pip, f"torch=={torch}", f"{wheel}[plot]"], folder)
        return folder / "bin"
    call([*pip, "--no-deps", "--no-index", wheel], folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # as plain paths: the checkout's editable install is a .pth file of its own, which is not read
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin"


@pytest.fixture
def fabric_ppo(programs, tmp_path):
    """Run a command in an empty folder; its output."""
    return lambda *words, **variables: call([programs / "fabric-ppo", *words], tmp_path, **variables)


def test_everything_is_in_the_wheel(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fabric_ppo").rglob("*.py")}
    presets = {f"fabric_ppo/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    scripts = {path.name for path in ROOT.glob("train_*.py")}
    report = ROOT / "fabric_ppo/tools/report"
    parts = [*report.glob("page.*"), *(report / "vendor").iterdir()]
    data = {str(path.relative_to(ROOT)) for path in parts} | {"fabric_ppo/py.typed", "fabric_ppo/tools/hub_card.md"}
    data |= {f"fabric_ppo/fast/{name}" for name in ("kernels.c", "convolutions.c", "vectors.h")}
    assert names == modules | presets | scripts | data
    assert "fabric_ppo/tools/report/vendor/uPlot.LICENSE" in names
    assert len(presets) > 10


def test_the_package_is_the_wheels(programs, tmp_path):
    code = "import fabric_ppo, train_fabric, train_torch; print(fabric_ppo.__file__, train_torch.__file__)"
    for path in call([programs / "python", "-c", code], tmp_path).split():
        assert Path(path).is_relative_to(programs.parent)


def test_presets_are_listed_and_trained(fabric_ppo, tmp_path):
    listed = [line.split()[0] for line in fabric_ppo("presets").splitlines()]
    assert listed == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    fabric_ppo("train", "torch", "--config", "cartpole", *TINY, "--run-dir", "run")
    assert "gae_lambda: 0.8" in (tmp_path / "run/config.yaml").read_text()
    scores = json.loads(fabric_ppo("evaluate", "run", "--episodes", "3", "--json"))
    assert scores["episodes"] == 3
    fabric_ppo("plot", "run", "--out", "curve.svg")
    assert (tmp_path / "curve.svg").read_text().startswith("<?xml")
    fabric_ppo("report", "run", "--out", "report.html")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("script", ["fabric", "decoupled"])
def test_launchers_find_the_scripts(fabric_ppo, tmp_path, script):
    flags = ("--accelerator", "cpu") if script == "fabric" else ()
    fabric_ppo("train", script, "--devices", "2", *flags, *TINY, "--run-dir", "run")
    assert json.loads((tmp_path / "run/summary.json").read_text())["world_size"] == 2


def test_a_preset_is_benchmarked(fabric_ppo, programs, tmp_path):
    """A tiny one: an installed preset is a file like any other."""
    (presets,) = programs.parent.glob("lib/python*/site-packages/fabric_ppo/configs")
    (presets / "acrobot.yaml").unlink()
    (presets / "acrobot.yaml").write_text("env_id: CartPole-v1\ntotal_timesteps: 256\nnum_steps: 64\n")
    fabric_ppo("benchmark", "acrobot", "--seeds", "1", "--jobs", "1")
    assert "CartPole-v1" in (tmp_path / "docs/results.md").read_text()
    (result,) = json.loads((tmp_path / "docs/results/results.json").read_text())
    assert (result["preset"], result["transitions"]) == ("acrobot", 256)
    assert (tmp_path / "logs/benchmark/acrobot/report.html").read_text().startswith("<!doctype html>")
