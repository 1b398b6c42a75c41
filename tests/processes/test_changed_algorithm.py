"""The diffs of docs/architecture.md apply to the program as it is, train in all scripts, and take effect."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from tests.fixtures.copies import copy_of_the_repository, train_all_in
from tests.fixtures.launching import ROOT, SCRIPTS
from tests.fixtures.processes import PATIENCE

SHORT = ("--total-timesteps", "512", "--num-steps", "64", "--update-epochs", "2", "--test-episodes", "1")
CHANGES = (
    *("The advantage estimator", "The loss", "An auxiliary loss", "The optimizer"),
    *("Learning rates of actor and critic", "Networks", "Frozen weights"),
)
SLOWER = ("The loss", "An auxiliary loss", "Networks", "Frozen weights")
METRICS = ("Game/value_mean", "Info/largest_advantage", "Info/mean_ratio")


def diffs() -> list[tuple[str, str]]:
    """Heading and text of each diff on the page, in order."""
    found, heading = [], ""
    pieces = re.split(r"^(### .*|```diff\n(?:.*\n)*?```)$", (ROOT / "docs/architecture.md").read_text(), flags=re.M)
    for piece in pieces:
        if piece.startswith("### "):
            heading = piece.removeprefix("### ")
        elif piece.startswith("```diff"):
            found.append((heading, piece.removeprefix("```diff\n").removesuffix("```")))
    return found


DIFFS = diffs()


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train in a copy with some diffs, once: the policy's bytes, the last line of metrics, and what is printed."""
    copies = {}

    def trained(script, *texts):
        if texts not in copies:
            copies[texts] = copy = copy_of_the_repository(tmp_path_factory.mktemp("copy") / "clone")
            for text in texts:
                words = ["git", "apply", "--verbose", "-"]
                subprocess.run(words, cwd=copy, input=text, text=True, check=True, timeout=PATIENCE)
            train_all_in(copy, *SHORT)
        run_dir = copies[texts] / script
        said = "".join(path.read_text() for path in (copies[texts] / f"{script}_said").iterdir())
        last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
        return (run_dir / "policy.safetensors").read_bytes(), last, said

    return trained


def test_the_page_has_the_changes_that_people_make():
    headings = [heading for heading, _ in DIFFS]
    assert headings == [*CHANGES, *["A metric"] * 3]
    assert all(1 <= len(re.findall(r"^\+[^+]", text, re.M)) <= 6 for _, text in DIFFS)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("heading", CHANGES)
def test_a_change_takes_effect(train, script, heading):
    (text,) = (text for name, text in DIFFS if name == heading)
    usual, _, said_before = train(script)
    policy, _, said = train(script, text)
    assert (len(policy) == len(usual)) == (heading != "Networks")
    assert policy != usual
    line = "training follows"
    assert (line in said_before, line in said) == (False, heading in SLOWER)


@pytest.mark.parametrize("script", SCRIPTS)
def test_metrics_are_logged_and_change_nothing(train, script):
    """All three diffs at once."""
    usual, before, _ = train(script)
    policy, logged, _ = train(script, *(text for name, text in DIFFS if name == "A metric"))
    assert policy == usual
    assert logged.keys() - before.keys() == set(METRICS)
    assert logged["Info/mean_ratio"] == pytest.approx(1.0, abs=0.1)
    assert logged["Info/largest_advantage"] > 0
