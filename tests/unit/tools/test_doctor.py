"""`fabric-ppo doctor`: what is there is found, what is broken is a row, and the status says whether training works."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import fabric_ppo
from fabric_ppo.process.errors import BAD_INPUT, FAILED
from fabric_ppo.process.extras import CORE, EXTRAS, install
from fabric_ppo.tools import cli, doctor
from tests.fixtures.launching import ROOT, clean_environment
from tests.fixtures.processes import PATIENCE, wait_until

BROKEN = {
    "wandb": "raise SystemExit('no account')",
    "ale_py": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
    "minigrid": "raise RuntimeError('a first line\\na second one')",
    "envpool": "print('noise')\nimport os\nos._exit(5)",
}
"""Optional packages, and what becomes of whoever imports them."""


def put(folder, packages):
    """Packages in a folder that is looked into first."""
    for name, code in packages.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(code)


def as_json(capsys, *words):
    status = cli.main(["doctor", "--json", *words])
    return status, json.loads(capsys.readouterr().out)


def test_the_version_is_one_line(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fabric-ppo {fabric_ppo.__version__}\n"
    assert importlib.metadata.version("fabric-ppo") == fabric_ppo.__version__


def test_a_machine_that_trains(capsys):
    """It runs these tests. Versions are those of the metadata, cores those that the scheduler gives."""
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"fabric-ppo {fabric_ppo.__version__}"
    assert lines[-1] == "training works"
    assert max(map(len, lines)) <= 80
    words = [line.split() for line in lines]
    for package in CORE:
        assert [package, "ok", importlib.metadata.version(package)] in words
    assert ["worker", "processes", "ok", "can", "be", "forked"] in words
    assert any(line[:4] == ["process", "group", "ok", "two"] for line in words)
    assert any(line[:3] == ["Python", "ok", platform.python_version()] for line in words)


def test_other_programs_get_numbers(capsys):
    status, found = as_json(capsys)
    assert (status, found["works"], found["problems"]) == (0, True, [])
    machine = found["machine"]
    assert machine["processor"]["cores"] == len(os.sched_getaffinity(0))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine["memory"]["available_bytes"] <= machine["memory"]["total_bytes"] <= total
    assert machine["GPU"]["gpus"] == []  # tests/conftest.py hides them
    versions = {package: row["version"] for package, row in found["packages"].items()}
    assert versions == {package: importlib.metadata.version(package) for package in CORE}
    assert found["features"]["MuJoCo"]["versions"] == {"mujoco": importlib.metadata.version("mujoco")}


def test_broken_optional_packages_are_rows_and_no_failure(tmp_path, monkeypatch, capsys):
    put(tmp_path, BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    status, found = as_json(capsys, "--imports")
    assert (status, found["works"]) == (0, True)
    features = {name: row["text"] for name, row in found["features"].items() if row["state"] == "failed"}
    assert features == {
        "W&B": "wandb cannot be imported: SystemExit: no account",
        "Atari": "ale_py cannot be imported: ended by SIGSEGV",
        "MiniGrid": "minigrid cannot be imported: RuntimeError: a first line a second one",
        "EnvPool": "envpool cannot be imported: ended with status 5",
    }


def test_nothing_optional_is_imported_unless_asked_for(tmp_path, monkeypatch):
    put(tmp_path, dict.fromkeys(BROKEN, f"open({str(tmp_path / 'imported')!r}, 'w')"))
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.examine().features["W&B"].state == "ok"
    assert not (tmp_path / "imported").exists()


def test_a_package_that_hangs_is_given_up_with_what_it_started(tmp_path, monkeypatch):
    """It sleeps for longer than anybody waits; what was tried before it keeps its answer."""
    code = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)"])
with open({str(tmp_path / "pid")!r}, "w") as file:
    file.write(str(child.pid))
os.replace({str(tmp_path / "pid")!r}, {str(tmp_path / "child")!r})
time.sleep(1e6)
"""
    put(tmp_path, {"hangs": code})
    monkeypatch.syspath_prepend(tmp_path)

    class Late(subprocess.Popen):
        """A process whose limit is over as soon as it hangs."""

        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            wait_until((tmp_path / "child").exists)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess, "Popen", Late)
    found = doctor._answers(["json", "hangs", "re"])
    assert found["json"] == {"name": "json", "facts": {}}
    assert found["hangs"] == {"error": "no answer within 60 s"}
    assert found["re"] == {"error": "not tried, since hangs came before: no answer within 60 s"}
    status = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    assert wait_until(lambda: not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_core_package_that_cannot_be_imported_is_named(tmp_path, monkeypatch, capsys):
    put(tmp_path, {"lightning": "raise ImportError('no symbol')"})
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["doctor"]) == FAILED
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "problem: lightning: cannot be imported: ImportError: no symbol",
        "training does not work here",
    ]


def test_a_core_package_of_another_version_is_named(monkeypatch, capsys):
    versions = {"torch": "2.5.9", "lightning": "2.6.3", "tyro": "2.0"}
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or real(name))
    status, found = as_json(capsys)
    assert (status, found["works"]) == (FAILED, False)
    assert found["problems"] == [
        "lightning: 2.6.3, >=2.5,!=2.6.2,!=2.6.3 is needed",
        "torch: 2.5.9, >=2.6 is needed",
        "tyro: 2.0, >=1.0,<2 is needed",
    ]
    assert found["packages"]["torch"]["command"] == 'pip install "torch>=2.6"'


def test_what_is_missing_comes_with_the_command_that_adds_it(monkeypatch):
    """As when nothing optional, and no C compiler, is installed; each part of `pyproject.toml` has a row."""
    real = importlib.util.find_spec
    optional = {doctor._module(package) for packages in EXTRAS.values() for package in packages}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name in optional else real(name))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    found = doctor.examine(imports=True)
    assert found.problems == []
    rows = [found.machine["C compiler"], *found.features.values()]
    missing = [row.command for row in rows if row.state == "missing"]
    assert sorted(missing) == sorted(map(install, EXTRAS))
    assert {name for name, row in found.features.items() if row.state == "ok"} == {"Box2D", "video"}


@pytest.mark.parametrize(
    ("variable", "value", "name", "text"),
    [
        ("CC", "mycc'", "C compiler", "CC=mycc': No closing quotation"),
        ("CC", "no-such-compiler -O1", "C compiler", "no-such-compiler -O1: not found; CC names another"),
        ("CC", "false", "C compiler", "false --version ended with status 1"),
        ("FABRIC_PPO_CACHE", f"{os.devnull}/x", "kernel cache", "/dev/null/x is not writable: "),
        ("GLOO_SOCKET_IFNAME", "none0", "process group", "none0"),
    ],
)
def test_what_is_wrong_with_the_machine_is_a_row_and_one_process_trains(monkeypatch, variable, value, name, text):
    monkeypatch.setenv(variable, value)
    found = doctor.examine()
    assert found.machine[name].state == "failed"
    assert text in found.machine[name].text
    assert found.problems == []


@pytest.mark.parametrize("package", ["yaml", "torch", "gymnasium", "numpy", "rich", "tyro", "packaging"])
def test_no_package_is_needed_to_say_what_is_broken(tmp_path, package):
    """The whole program, with a core package that raises what no package should."""
    put(tmp_path, {package: "raise KeyError('broken')"})
    env = clean_environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    words = [sys.executable, "-m", "fabric_ppo", "doctor", "--json"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (FAILED, "")
    named = {"yaml": "pyyaml", "packaging": "lightning"}.get(package, package)
    assert any(line.startswith(f"{named}: ") for line in json.loads(done.stdout)["problems"])


def test_another_command_says_in_a_line_that_a_package_is_broken(tmp_path):
    put(tmp_path, {"yaml": "raise ImportError('broken')"})
    env = clean_environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    words = [sys.executable, "-m", "fabric_ppo", "presets"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert done.stderr == "error: ImportError: broken; fabric-ppo doctor lists what is missing\n"


def test_an_unknown_flag_is_answered(capsys):
    assert cli.main(["doctor", "--jsn"]) == BAD_INPUT
    assert capsys.readouterr().err == "error: --jsn: unknown flag; did you mean --json?\n"


def test_a_package_with_an_extra_of_its_own_is_found(tmp_path, monkeypatch):
    """As `minari[hdf5]`: the module has the name before the bracket."""
    put(tmp_path, {"minari": "", "psycopg": ""})
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = {name: row for name, (_, row) in doctor._features()}
    assert (rows["Minari"].state, rows["PostgreSQL"].state) == ("ok", "ok")


def test_names_fit_their_column():
    from fabric_ppo.tools.commands.doctor import _NAMES

    assert max(map(len, dict(doctor._features()))) < _NAMES
