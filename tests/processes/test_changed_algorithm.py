"""The diffs of docs/architecture.md apply to the program as it is, train in all scripts, and take effect."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys

import pytest

from tests.fixtures.copies import copy_of_the_repository, train_all_in
from tests.fixtures.launching import ROOT, SCRIPTS, clean_environment
from tests.fixtures.processes import PATIENCE

SHORT = ("--total-timesteps", "512", "--num-steps", "64", "--update-epochs", "2", "--test-episodes", "1")
CHANGES = (
    *("The advantage estimator", "The loss", "The sampling of actions", "An auxiliary loss", "The optimizer"),
    *("Learning rates of actor and critic", "Networks", "Frozen weights"),
)
SLOWER = ("The loss", "The sampling of actions", "An auxiliary loss", "Networks", "Frozen weights")
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


DRAWS = 40_000
DRAW = f"""
import torch
from fabric_ppo.agents.distributions import Categorical

torch.manual_seed(0)
params, found = torch.tensor([[2.0, 0.0, -1.0]]), Categorical(3)
actions = found.sample(params.expand({DRAWS}, -1), found.noise(torch.rand({DRAWS}, 3, dtype=torch.float64)))
print(*(torch.bincount(actions, minlength=3) / {DRAWS}).tolist())
given = params.expand(3, -1), torch.arange(3)
print(*found.log_prob(*given).exp().tolist())
print(*found.log_prob_and_entropy(*given)[0].exp().tolist())
"""


def test_actions_are_drawn_with_the_probabilities_that_train(tmp_path):
    """With a temperature of 2: softmax(logits / 2), in the draws, in what is stored and in the loss."""
    copy = copy_of_the_repository(tmp_path / "copy")
    (text,) = (text for name, text in DIFFS if name == "The sampling of actions")
    subprocess.run(["git", "apply", "-"], cwd=copy, input=text, text=True, check=True, timeout=PATIENCE)
    env = clean_environment(PYTHONPATH=str(copy))
    words = [sys.executable, "-c", DRAW]
    done = subprocess.run(words, cwd=copy, env=env, capture_output=True, text=True, check=True, timeout=PATIENCE)
    weights = [math.exp(logit / 2) for logit in (2.0, 0.0, -1.0)]
    expected = [weight / sum(weights) for weight in weights]
    frequencies, *probabilities = ([float(word) for word in line.split()] for line in done.stdout.splitlines())
    assert frequencies == pytest.approx(expected, abs=0.01)
    assert len(probabilities) == 2
    for each in probabilities:
        assert each == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("script", SCRIPTS)
def test_metrics_are_logged_and_change_nothing(train, script):
    """All three diffs at once."""
    usual, before, _ = train(script)
    policy, logged, _ = train(script, *(text for name, text in DIFFS if name == "A metric"))
    assert policy == usual
    assert logged.keys() - before.keys() == set(METRICS)
    assert logged["Info/mean_ratio"] == pytest.approx(1.0, abs=0.1)
    assert logged["Info/largest_advantage"] > 0
