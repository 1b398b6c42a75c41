"""The wheel, installed into an environment of its own: its commands run outside of a checkout.

The environment sees the dependencies that are installed here already. With FABRIC_PPO_WHEEL=real,
as in `make wheel-check`, pip installs them as it does for a user, from the package's own list.
"""

from __future__ import annotations

import ast
import email
import importlib.metadata
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from fabric_ppo.process.extras import CORE, EXTRAS, install
from tests.fixtures.launching import ROOT, clean_environment
from tests.fixtures.processes import PATIENCE

BUILT_FROM = ("fabric_ppo", "configs", "LICENSE", "README.md", "pyproject.toml", "MANIFEST.in", "examples")
REAL = os.environ.get("FABRIC_PPO_WHEEL") == "real"
only_real = pytest.mark.skipif(not REAL, reason="asks package registries: FABRIC_PPO_WHEEL=real, as for a release")
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
"""Versions of Python that the package is for, as far as PyTorch has wheels for them."""
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
def source(tmp_path_factory):
    """A copy of what is built: in a checkout, an older build may lie about and get into it."""
    source = tmp_path_factory.mktemp("source")
    for path in (*(ROOT / name for name in BUILT_FROM), *ROOT.glob("train_*.py")):
        if path.is_dir():
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    return source


def build_wheel(source, target):
    """The wheel of a folder or of an sdist."""
    isolated = [] if REAL else ["--no-build-isolation"]
    call([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *isolated, "-w", target, source], target)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    """The sdist, as `python -m build --sdist` has the backend make it."""
    target = tmp_path_factory.mktemp("sdist")
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    call([sys.executable, "-c", code, target], source)
    (built,) = target.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """The folder of `python` and `fabric-ppo` in an environment with the wheel.

    `core.json` beside it is what `doctor` says where the core alone is installed.
    """
    folder = tmp_path_factory.mktemp("environment")
    call([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet"]
    if REAL:
        torch = importlib.metadata.version("torch").partition("+")[0]
        call([*pip, f"torch=={torch}", wheel], folder)
        (folder / "core.json").write_text(call([folder / "bin/fabric-ppo", "doctor", "--json"], folder))
        call([*pip, f"{wheel}[plot]"], folder)
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
    parts += [path for path in (ROOT / "fabric_ppo/tools/sweep").glob("page.*") if path.suffix != ".py"]
    data = {str(path.relative_to(ROOT)) for path in parts} | {"fabric_ppo/py.typed", "fabric_ppo/tools/hub_card.md"}
    data |= {f"fabric_ppo/fast/{name}" for name in ("kernels.c", "convolutions.c", "vectors.h")}
    assert names == modules | presets | scripts | data
    assert "fabric_ppo/tools/report/vendor/uPlot.LICENSE" in names
    assert len(presets) > 10


def contents(wheel):
    """Name -> bytes of a wheel's files, but for the list of their digests."""
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist() if not name.endswith("/RECORD")}


def test_the_sdist_makes_the_same_wheel(wheel, sdist, tmp_path):
    """Metadata included. It has what the wheel is made of, the notebooks, and nothing else of the folder."""
    with tarfile.open(sdist) as opened:
        files = {name.partition("/")[2] for name in opened.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "train_torch.py", "configs/cartpole.yaml"} <= files
    assert not [name for name in files if name.startswith(("tests", "docs", "benchmarks", "logs", ".venv"))]
    notebooks = {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.ipynb")}
    assert {name for name in files if name.startswith("examples/")} == {"examples/README.md"} | notebooks
    assert contents(build_wheel(sdist, tmp_path)) == contents(wheel)


def requirements(wheel):
    """`extra -> {requirement}` of a wheel's metadata; the core's are those of the empty name."""
    (name,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(zipfile.ZipFile(wheel).read(name))
    found: dict[str, set[str]] = {extra: set() for extra in ("", *metadata.get_all("Provides-Extra", []))}
    for line in metadata.get_all("Requires-Dist", []):
        package, _, marker = line.partition(";")
        (extra,) = re.findall(r"extra == ['\"]([\w-]+)['\"]", marker) or [""]
        found[extra].add(package.strip())
    return metadata, found


def test_the_metadata_have_the_core_and_every_extra(wheel):
    metadata, found = requirements(wheel)
    assert {name: metadata[name] for name in ("Name", "Version", "License-Expression", "Requires-Python")} == {
        **{"Name": "fabric-ppo", "Version": importlib.metadata.version("fabric-ppo")},
        **{"License-Expression": "Apache-2.0", "Requires-Python": ">=3.10"},
    }
    assert metadata["Author"] == "The Fabric PPO authors"

    def names(extra):
        return {re.match(r"[\w.-]+(\[\w+\])?", each)[0] for each in found[extra]}

    assert {name.partition("[")[0] for name in names("")} == set(CORE)
    assert {extra: names(extra) for extra in found if extra} == {extra: set(each) for extra, each in EXTRAS.items()}


def test_the_doctor_of_the_core_alone(fabric_ppo, programs):
    """With the dependencies of this environment training works; with the core's alone it does, too."""
    found = json.loads(fabric_ppo("doctor", "--json"))
    assert found["works"]
    if REAL:
        core = json.loads((programs.parent / "core.json").read_text())
        assert core["works"]
        missing = {row["command"] for row in core["features"].values() if row["state"] == "missing"}
        # others may come with what the core needs
        assert install("plot") in missing
        assert install("wandb") in missing


@only_real
@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_can_be_installed(programs, wheel, extra, tmp_path):
    """Pip finds packages that fit each other and the core."""
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet"]
    call([*pip, "--dry-run", f"{wheel}[{extra}]"], tmp_path)


@only_real
@pytest.mark.parametrize("extra", ["minigrid", "onnx"])
def test_an_extra_that_is_installed_is_found(programs, wheel, fabric_ppo, extra, tmp_path):
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet"]
    call([*pip, f"{wheel}[{extra}]"], tmp_path)
    features = json.loads(fabric_ppo("doctor", "--imports", "--json"))["features"]
    title = {"minigrid": "MiniGrid", "onnx": "ONNX export"}[extra]
    assert features[title]["state"] == "ok"


def interpreter(version):
    """A Python of a version, on the path or where people put them; skips the test where there is none."""
    homes = [*Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin")]
    places = [*homes, "/usr/bin", "/usr/local/bin", "/opt/homebrew/bin", *os.environ["PATH"].split(os.pathsep)]
    for place in places:
        program = Path(place) / f"python{version}"
        # what pyenv has on the path is there for versions that are not chosen, too, and fails
        if program.is_file() and subprocess.run([program, "-c", ""], capture_output=True, check=False).returncode == 0:
            return program
    pytest.skip(f"python{version} is not on this machine")


@pytest.mark.parametrize("version", PYTHONS)
def test_each_python_compiles_the_source(wheel, version, tmp_path):
    """Without importing it: its dependencies are those of this Python."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import compileall, sys; sys.exit(not compileall.compile_dir('.', quiet=1, force=True))"
    call([interpreter(version), "-W", "error::SyntaxWarning", "-c", code], tmp_path)


def test_the_source_has_the_grammar_of_the_oldest_python(wheel):
    """Also where that Python is not on the machine."""
    least = tuple(map(int, PYTHONS[0].split(".")))
    assert requirements(wheel)[0]["Requires-Python"] == f">={PYTHONS[0]}"
    for name, content in contents(wheel).items():
        if name.endswith(".py"):
            ast.parse(content, name, feature_version=least)


@only_real
@pytest.mark.parametrize("version", PYTHONS)
def test_the_core_trains_on_each_python(wheel, version, tmp_path):
    """Installed as a user would, with the newest dependencies that there are for it."""
    call([interpreter(version), "-m", "venv", tmp_path / "venv"], tmp_path)
    call([tmp_path / "venv/bin/python", "-m", "pip", "install", "--quiet", wheel], tmp_path)
    program = tmp_path / "venv/bin/fabric-ppo"
    assert json.loads(call([program, "doctor", "--json"], tmp_path))["works"]
    call([program, "train", "torch", "--env-id", "CartPole-v1", *TINY, "--run-dir", "run"], tmp_path)
    assert json.loads((tmp_path / "run/summary.json").read_text())["env_steps"] == 256


NO_WHEELS = pytest.mark.xfail(reason="Box2D and pygame have no wheels for 3.14 (2026-11-28)", strict=True)


@only_real
@pytest.mark.parametrize("version", [*PYTHONS[:-1], pytest.param(PYTHONS[-1], marks=NO_WHEELS)])
def test_pip_finds_the_core_for_each_python(wheel, version, tmp_path):
    """As wheels, so that no interpreter of that version is needed."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--target", tmp_path]
    call([*pip, "--python-version", version, "--only-binary", ":all:", wheel], tmp_path)


def test_the_package_is_the_wheels(programs, tmp_path):
    code = "import fabric_ppo, train_fabric, train_torch; print(fabric_ppo.__file__, train_torch.__file__)"
    for path in call([programs / "python", "-c", code], tmp_path).split():
        assert Path(path).is_relative_to(programs.parent)


def test_presets_are_listed_and_trained(fabric_ppo, tmp_path):
    listed = [line.split()[0] for line in fabric_ppo("presets").splitlines()]
    assert listed == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    fabric_ppo("train", "torch", "--config", "cartpole", *TINY, "--run-dir", "run")
    assert "activation_function: tanh" in (tmp_path / "run/config.yaml").read_text()
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
