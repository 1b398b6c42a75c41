"""The commands that predict scaling: table, picture, numbers of a run, bad numbers; two hosts, where asked for."""

from __future__ import annotations

import os
import re
import sys

import pytest

from benchmarks.scaling import WORKLOADS
from tests.fixtures.launching import ROOT, command, run

COMMAND = (sys.executable, "-m", "benchmarks.scaling")


def cells(text: str) -> list[list[str]]:
    """Rows of the tables that were printed."""
    return [[each.strip() for each in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_the_command_prints_tables_and_draws(tmp_path):
    picture = tmp_path / "scaling.svg"
    done = run([*COMMAND, "--ranks", "64", "8", "1", "--out", str(picture)], ROOT)
    assert done.returncode == 0, done.stderr
    assert "</svg>" in picture.read_text()
    assert all(f"{name}: " in done.stdout for name in WORKLOADS)
    rows = [row for row in cells(done.stdout) if row[0].isdigit()]
    assert [row[0] for row in rows] == ["1", "8", "64"] * len(WORKLOADS)
    assert {row[1].split()[1] for row in rows if row[0] == "1"} == {"(1x)"}


def test_numbers_of_ones_own_take_the_place_of_the_works():
    """Without a network and with ranks that do the same, a rank of eight is as fast as one."""
    words = ("--workload", "lunarlander", "--ranks", "1", "8", "--latency", "0", "--bandwidth", "inf")
    done = run([*COMMAND, *words, "--collect-seconds", "1e-3", "--step-seconds", "0", "--row-seconds", "0"], ROOT)
    assert done.returncode == 0, done.stderr
    one, eight = (row for row in cells(done.stdout) if row[0].isdigit())
    # 4096 transitions in 4.096 s, and 19 ms of the rest
    assert one[1] == f"{4096 / 4.115:,.0f} (1x)"
    assert eight[1] == f"{8 * 4096 / 4.115:,.0f} (8x)"


def test_numbers_can_be_those_of_a_run(tmp_path):
    flags = ("--num-steps", "16", "--num-envs", "2", "--total-timesteps", "128", "--update-epochs", "3")
    trained = run(command("torch", 1, *flags, "--test-episodes", "1", "--run-dir", "run"), tmp_path)
    assert trained.returncode == 0, trained.stderr
    done = run([*COMMAND, "--run", str(tmp_path / "run"), "--ranks", "1", "2"], ROOT)
    assert done.returncode == 0, done.stderr
    assert "run: 32 transitions and 3 gradient steps of a rank in an update" in done.stdout
    assert len([row for row in cells(done.stdout) if row[0].isdigit()]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--latency", "-1"), "--latency -1: 0 or more is expected"),
        (("--latency", "nan"), "--latency nan: 0 or more is expected"),
        (("--bandwidth", "0"), "--bandwidth 0: more than 0 is expected"),
        (("--player-speed", "0"), "--player-speed 0: more than 0 is expected"),
        (("--rows", "0"), "--rows 0: 1 or more is expected"),
        (("--ranks", "8", "0"), "--ranks 0: 1 or more is expected"),
        (("--out", "picture.txt"), "--out picture.txt: a name that ends with .svg, .png, .pdf is expected"),
        (("--run", "nothing/here"), "nothing/here: holds no run; the folder of a run is expected"),
    ],
)
def test_a_number_that_cannot_be_is_one_line(words, said):
    done = run([*COMMAND, *words], ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {said}\n"


def test_two_hosts_take_as_long_as_predicted(tmp_path):
    """Only the table is looked at: how far off it is depends on what else the machine does."""
    if os.environ.get("FABRIC_PPO_TEST_HOSTS") != "1" or os.geteuid() != 0:
        pytest.skip("makes network namespaces: set FABRIC_PPO_TEST_HOSTS=1, as root")
    words = ("--updates", "8", "--rounds", "1", "--ways", "overlap", "--table", str(tmp_path / "table.md"))
    done = run([sys.executable, "-m", "benchmarks.network", *words], ROOT)
    assert done.returncode == 0, done.stderr
    rows = [row for row in cells((tmp_path / "table.md").read_text()) if re.match(r"[\d.]+$", row[0])]
    assert len(rows) == 3
    assert [float(row[0]) for row in rows] == sorted(float(row[0]) for row in rows)
