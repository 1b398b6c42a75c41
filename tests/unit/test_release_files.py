"""CHANGELOG.md, CONTRIBUTING.md, CITATION.cff, the Dockerfile and the workflow: they agree with the package."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import subprocess

import pytest
import yaml

import fabric_ppo
from tests.fixtures.launching import ROOT
from tests.fixtures.processes import PATIENCE

VERSION = fabric_ppo.__version__
PYPROJECT = (ROOT / "pyproject.toml").read_text()
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_there_is_one_version():
    assert re.findall(r'^version = "(.*)"$', PYPROJECT, re.MULTILINE) == [VERSION]
    assert CITATION["version"] == VERSION
    titles = re.findall(r"^## \[(.*?)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert titles[0] == ("Unreleased", "")
    assert titles[1] == (VERSION, str(CITATION["date-released"]))
    numbers = [tuple(map(int, version.split("."))) for version, _ in titles[1:]]
    assert numbers == sorted(numbers, reverse=True)


def test_the_changes_are_of_the_kinds_that_keep_a_changelog_has():
    kinds = set(re.findall(r"^### (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("name", ["CHANGELOG.md", "CONTRIBUTING.md"])
def test_what_a_page_names_exists(name):
    text = (ROOT / name).read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        target, _, anchor = link.partition("#")
        if not target.startswith("https://"):
            titles = re.findall(r"^#+ (.*)$", (ROOT / target).read_text(), re.MULTILINE)
            assert not anchor or anchor in {title.lower().replace(" ", "-") for title in titles}, link
    paths = re.findall(r"`((?:\.ci|tests|docs|fabric_ppo)/[\w./-]*)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    targets = re.findall(r"`(?:\w+=\w+ )?make ([\w-]+)`", text)
    assert [each for each in targets if not re.search(rf"^{each}:", (ROOT / "Makefile").read_text(), re.M)] == []


@pytest.mark.parametrize(
    ("target", "installed"), [("train", ["requirements.txt"]), ("docs", ["requirements-docs.txt"])]
)
def test_what_tests_need_is_installed_for_tests_only(target, installed, tmp_path):
    """Some of it has no version for Python 3.10, which trains."""

    def wanted(target):
        words = ["make", "-n", "--no-print-directory", "-C", str(ROOT), f"VENV={tmp_path}/venv", target]
        env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        commands = subprocess.run(words, env=env, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
        return re.findall(r"--requirement \S*/(requirements[\w-]*\.txt)", commands)

    assert wanted(target) == list(dict.fromkeys(["requirements.txt", *installed]))
    assert wanted("test") == ["requirements.txt", "requirements-dev.txt"]


def test_the_citation_has_what_its_schema_demands():
    """Of version 1.2.0, as cffconvert reads it; nobody is named who is not an author."""
    assert {"authors", "cff-version", "message", "title"} <= set(CITATION)
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["authors"] == [{"name": "The Fabric PPO authors"}]
    assert 'authors = [{ name = "The Fabric PPO authors" }]' in PYPROJECT
    assert f'license = "{CITATION["license"]}"' in PYPROJECT


def instructions():
    """`(instruction, words)` of the Dockerfile, its continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]


def test_the_image_is_made_of_what_is_there():
    found = instructions()
    known = {"FROM", "WORKDIR", "RUN", "ENV", "COPY", "ARG", "USER", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in found} <= known
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignore[0] == "*"
    sent = [line[1:] for line in ignore if line.startswith("!")]
    copied = {word for name, text in found if name == "COPY" and "--from" not in text for word in text.split()[:-1]}
    assert all((ROOT / each).exists() and any(fnmatch.fnmatch(each, pattern) for pattern in sent) for each in copied)
    assert {*(path.name for path in ROOT.glob("train_*.py")), "configs", "fabric_ppo", "pyproject.toml"} <= copied
    for name, text in found:
        if name == "RUN":
            assert shlex.split(text)[0] in {"apt-get", "python", "pip", "useradd"}


def test_the_image_runs_the_command_as_nobody_special():
    last = [text for name, text in instructions() if name == "FROM"][-1]
    final = instructions()[[text for _, text in instructions()].index(last, 1) :]
    by_name = dict(final)
    (user,) = re.findall(r"useradd .* (\w+)$", by_name["RUN"])
    assert by_name["USER"] == user
    names = [name for name, _ in final]
    assert names.index("RUN") < names.index("USER") < names.index("ENTRYPOINT")
    (program,) = json.loads(by_name["ENTRYPOINT"])
    assert re.search(rf"^{program} = ", PYPROJECT.partition("[project.scripts]")[2], re.MULTILINE)
    assert json.loads(by_name["CMD"]) == ["doctor"]
    (needed,) = re.findall(r'^requires-python = ">=3\.(\d+)"$', PYPROJECT, re.MULTILINE)
    assert int(re.findall(r"python:3\.(\d+)", last)[0]) >= int(needed)


def test_the_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert (ROOT / ".ci/run").is_file()
    assert workflow["permissions"] == {"contents": "read"}
