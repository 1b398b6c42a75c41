"""Flags that a command does not have: the answer names its own."""

from __future__ import annotations

import contextlib
import re

import pytest

from fabric_ppo.tools import cli
from fabric_ppo.tools.command_hints import _SAME

HINTS = {
    "evaluate A --n-eval-episodes 3": "--n-eval-episodes: unknown flag; here it is --episodes",
    "evaluate A --n_eval_episodes=3": "--n_eval_episodes: unknown flag; here it is --episodes",
    "evaluate --episode 3": "--episode: unknown flag; did you mean --episodes?",
    "evaluate A --step_limit 3": "--step_limit: unknown flag; did you mean --step-limit?",
    "evaluate A --deterministic": "--deterministic: unknown flag; actions are the most probable ones anyway; "
    "--stochastic samples them",
    "evaluate A --learning-rate 3": "--learning-rate: unknown flag; it is a flag of train",
    "evaluate A --qqqq": "--qqqq: unknown flag; see fabric-ppo evaluate --help",
    "export A --format onnx": "--format: unknown flag; here it is --to",
    "export A --too onnx": "--too: unknown flag; did you mean --to?",
    "plot A --window 3 --out a.svg": "--window: unknown flag; here it is --smooth",
    "plot A -o a.svg": "-o: unknown flag; here it is --out",
    "benchmark classic --n-seeds 3": "--n-seeds: unknown flag; here it is --seeds",
    "report A --output a.html": "--output: unknown flag; here it is --out",
    "presets --all": "--all: unknown flag; see fabric-ppo presets --help",
    "evaluate A B C": "B C: one RUN_DIR is expected, and no more",
    "train decoupled": "--devices 1: a player and at least one trainer are needed, "
    "as in fabric-ppo train decoupled --devices 2",
    "presets mine": "mine: a flag is expected, and no more",
}


@pytest.mark.parametrize(("words", "message"), HINTS.items(), ids=HINTS)
def test_an_unknown_flag_is_answered_with_the_commands_own(words, message, capsys):
    assert cli.main(words.split()) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


@pytest.mark.parametrize("value", ["-3", "-0.5"])
def test_a_negative_number_is_no_flag(value, capsys):
    assert cli.main(["evaluate", "A", "--seed", value]) == 2
    assert capsys.readouterr().err.startswith(f"error: --seed {value}: ")


def test_flags_that_are_hinted_at_exist(capsys):
    pages = []
    for name in cli.COMMANDS:
        with contextlib.suppress(SystemExit):
            cli.main([name, "--help"])
        pages.append(capsys.readouterr().out)
    flags = set(re.findall(r"^  (--[\w-]+)", "\n".join(pages), re.MULTILINE))
    assert _SAME.keys() <= flags
