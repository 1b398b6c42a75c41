"""Runs on a terminal: the screen shows what is logged, and survives prints, other sizes, signals and kills."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from fabric_ppo.process.console import format_number
from tests.fixtures.launching import ROOT
from tests.fixtures.processes import PATIENCE, wait_until
from tests.fixtures.terminals import Terminal

pytestmark = pytest.mark.processes

FLAGS = [
    *("--env-id", "CartPole-v1", "--num-envs", "1", "--num-steps", "64", "--update-epochs", "2", "--seed", "3"),
    *("--per-rank-batch-size", "32", "--total-timesteps", "640", "--eval-every", "4", "--eval-episodes", "2"),
    *("--test-episodes", "2", "--checkpoint-every", "3", "--run-dir", "run"),
]
CALLBACK = """
import sys, time, warnings
from pathlib import Path
from fabric_ppo.run.callbacks import Callback

class Talks(Callback):
    def on_update(self, run, metrics):
        print("of a callback", run.update)
        print("and a second line", file=sys.stderr)
        warnings.warn(f"odd {run.update}")
        print("...", end="", flush=True)

class Waits(Callback):
    def on_update(self, run, metrics):
        if run.update == 4:
            Path("waits").touch()
            while not Path("go").exists():
                time.sleep(0.02)
"""
PANEL = "explained variance"
"""Words that only a panel has."""


@pytest.fixture
def terminal(tmp_path):
    (tmp_path / "parts.py").write_text(CALLBACK)
    made = Terminal(80, 40)
    yield made
    made.close()


def command(*flags):
    return [sys.executable, str(ROOT / "train_torch.py"), *FLAGS, *flags]


def train(terminal, folder, *flags, **variables):
    """Train to the end; the lines of the terminal."""
    assert terminal.start(command(*flags), folder, **variables).wait(PATIENCE) == 0
    terminal.drain()
    return terminal.history


def rows_of(folder):
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def starts_to_wait(folder):
    return wait_until((folder / "waits").exists)


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_screen_shows_what_is_logged(tmp_path, columns):
    terminal = Terminal(columns, 40)
    text = "\n".join(train(terminal, tmp_path))
    last, means = (
        rows_of(tmp_path)[-1],
        [row["Rewards/rew_avg"] for row in rows_of(tmp_path) if "Rewards/rew_avg" in row],
    )
    evaluations = [row for row in rows_of(tmp_path) if "Eval/return_mean" in row]
    for words in (
        "100 %",
        f"{last['step']}/640 steps",
        f"return {format_number(means[-1])}",
        f"{format_number(min(means))} to {format_number(max(means))}",
        f"explained variance {format_number(last['Info/explained_variance'])}",
        f"KL {format_number(last['Info/approx_kl'])}",
        f"entropy {format_number(-last['Loss/entropy_loss'])}",
        f"evaluation {format_number(evaluations[-1]['Eval/return_mean'])} after update 8",
        "checkpoint update_10, ",
    ):
        assert words in text, words
    assert text.count(PANEL) == 1
    assert not terminal.cursor[2]
    terminal.close()


def test_what_others_print_is_above_the_panel(terminal, tmp_path):
    lines = train(terminal, tmp_path, "--callback", "parts:Talks")
    (panel,) = [number for number, line in enumerate(lines) if PANEL in line]
    for number in range(1, 11):
        words = "of a callback" if number == 1 else "...of a callback"
        (where,) = [at for at, line in enumerate(lines) if line == f"{words} {number}"]
        assert where < panel
    assert sum(line == "and a second line" for line in lines) == 10
    assert "".join(lines).count("UserWarning: odd") == 10  # its line, with a path, may be wider than the screen
    assert "trained 640 steps" in "\n".join(lines[panel:])


@pytest.mark.parametrize("variables", [{"LANG": "C"}, {"LC_ALL": "C"}, {"TERM": "linux"}], ids=str)
def test_ascii_where_there_is_no_more(terminal, tmp_path, variables):
    text = "\n".join(train(terminal, tmp_path, **variables))
    assert PANEL in text
    assert text.isascii()


def test_no_colors_where_they_are_not_wanted(terminal, tmp_path):
    assert PANEL in "\n".join(train(terminal, tmp_path, NO_COLOR="1"))
    assert b"\x1b[32m" not in terminal.written
    assert b"\x1b[36m" not in terminal.written


@pytest.mark.parametrize(("flags", "variables"), [((), {"TERM": "dumb"}), (("--quiet",), {})])
def test_plain_lines_or_none(terminal, tmp_path, flags, variables):
    train(terminal, tmp_path, *flags, **variables)
    assert b"\x1b[" not in terminal.written
    assert (b"640/640 steps" in terminal.written) != bool(flags)


def test_the_same_bits_with_a_panel(terminal, tmp_path):
    train(terminal, tmp_path)
    with_panel = (tmp_path / "run" / "policy.safetensors").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    train(terminal, other, "--quiet")
    assert (other / "run" / "policy.safetensors").read_bytes() == with_panel
    timed = ("Time/step_per_second", "Time/rollout_seconds", "Time/update_seconds")
    pairs = [[{k: v for k, v in row.items() if k not in timed} for row in rows_of(x)] for x in (tmp_path, other)]
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize("columns", [40, 100])
def test_another_size_in_the_middle(terminal, tmp_path, columns):
    process = terminal.start(command("--callback", "parts:Waits"), tmp_path)
    assert starts_to_wait(tmp_path)
    terminal.resize(columns, 40)
    (tmp_path / "go").touch()
    assert process.wait(PATIENCE) == 0
    terminal.drain()
    assert sum(PANEL in line for line in terminal.history) == 1
    assert sum("100 %" in line for line in terminal.history) == 1


def test_ctrl_c_leaves_a_terminal_that_works(terminal, tmp_path):
    process = terminal.start(command("--callback", "parts:Waits"), tmp_path)
    assert starts_to_wait(tmp_path)
    terminal.type(b"\x03")
    assert wait_until(lambda: b"^C" in terminal.written)  # echoed once the signal is sent
    (tmp_path / "go").touch()
    assert process.wait(PATIENCE) == 75
    terminal.drain()
    lines, (row, column, is_hidden) = terminal.history, terminal.cursor
    assert (column, is_hidden) == (0, False)
    assert not any(terminal.lines[row:])
    (panel,) = [number for number, line in enumerate(lines) if PANEL in line]
    assert any("stopped by SIGINT" in line for line in lines[panel:])


def test_a_kill_leaves_a_terminal_that_works(terminal, tmp_path):
    process = terminal.start(command("--callback", "parts:Waits"), tmp_path)
    assert starts_to_wait(tmp_path)
    process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    terminal.drain()
    assert not terminal.cursor[2]
    assert b"\x1b[?" not in terminal.written


def test_ctrl_z_and_fg(terminal, tmp_path):
    """The shell's words are not mixed with the panel; after `fg` it is there again, once."""
    run = " ".join(command("--callback", "parts:Waits"))
    process = terminal.start(["bash", "-c", f"set -m; {run}; echo stopped with $?; touch go; fg"], tmp_path)
    assert starts_to_wait(tmp_path)
    terminal.type(b"\x1a")
    assert process.wait(PATIENCE) == 0
    terminal.drain()
    lines = terminal.history
    (stopped,) = [number for number, line in enumerate(lines) if line == f"stopped with {128 + signal.SIGTSTP}"]
    (panel,) = [number for number, line in enumerate(lines) if PANEL in line]
    assert stopped < panel
    assert "100 %" in "\n".join(lines[stopped:])
