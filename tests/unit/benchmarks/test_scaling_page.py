"""docs/scaling.md: its commands are commands, and its predictions are those of the model."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

import pytest

from benchmarks import scaling
from benchmarks.scaling import WORKLOADS, fastest, speed_of
from benchmarks.scaling_model import WAYS, Network, expected_maximum
from tests.fixtures.launching import ROOT
from tests.fixtures.pages import table_rows

PAGE = ROOT / "docs/scaling.md"
TEXT = PAGE.read_text()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_commands_are_read(words):
    assert words[:3] == ["python", "-m", "benchmarks.scaling"]
    given = scaling.parse(words[3:])
    if not given.run:
        works, network = scaling.inputs(given)
        assert all(fastest(work, network, 8) in WAYS for work in works.values())


@pytest.mark.parametrize("name", re.findall(r"`python -m benchmarks\.(\w+)", TEXT))
def test_the_programs_that_are_named_exist(name):
    assert (ROOT / "benchmarks" / f"{name}.py").is_file()


def test_the_tables_are_what_the_command_prints():
    given = scaling.parse(COMMANDS[0][3:])
    works, network = scaling.inputs(given)
    assert works == WORKLOADS
    for work in works.values():
        assert scaling.table(work, network, given.ranks) in TEXT


LINKS = {
    "50 us, 10 Gbit/s": Network(50e-6, 10e9),
    "1 ms, 1 Gbit/s": Network(1e-3, 1e9),
    "20 ms, 100 Mbit/s": Network(20e-3, 100e6),
}
FASTEST = "| links | work | 2 hosts, a rank on each | 8 ranks on a host | 32 | 128 | 1,024 |"


def test_the_fastest_ways_are_those_of_the_model():
    rows = table_rows(FASTEST, PAGE)
    assert [(row[0], row[1]) for row in rows] == [(link, name) for link in LINKS for name in WORKLOADS]
    for link, name, *cells in rows:
        work, hosts_of_eight = WORKLOADS[name], replace(LINKS[link], host_ranks=8)
        for count, cell in zip((2, 8, 32, 128, 1024), cells, strict=True):
            network = LINKS[link] if count == 2 else hosts_of_eight
            best = fastest(work, network, count)
            times = re.search(r"\((.*)\)", speed_of(best, work, network, count))
            assert cell == f"{best}, {times[1]}"


@pytest.mark.parametrize(
    ("words", "ranks", "times"),
    [
        ("--batch-size 512", 1024, "17"),
        ("--batch-size 4096", 1024, "112"),
        ("--tree", 1024, "214"),
        ("--player-speed 8 --host-ranks 1", 2, "5.4"),
    ],
)
def test_what_else_is_said_of_lunarlander(words, ranks, times):
    given = scaling.parse(["--workload", "lunarlander", "--host-ranks", "8", *words.split()])
    works, network = scaling.inputs(given)
    work = works["lunarlander"]
    assert f"({times}x)" in speed_of(fastest(work, network, ranks), work, network, ranks)
    assert f"{times} times" in TEXT


def test_the_expected_maxima_are_true():
    assert "0, 0.56, 1.42 and 3.25 for 1, 2, 8 and 1,024" in TEXT
    for count, value in ((1, 0), (2, 0.56), (8, 1.42), (1024, 3.25)):
        assert expected_maximum(count) == pytest.approx(value, abs=0.006)


def test_the_check_on_two_hosts_is_within_what_is_said():
    rows = table_rows("| latency, ms | Mbit/s | way | predicted, ms | measured, ms | from .. to | off by |", PAGE)
    assert [row[2] for row in rows] == list(WAYS) * 3
    for row in rows:
        predicted, measured = float(row[3]), float(row[4])
        assert row[6] == f"{predicted / measured - 1:+.0%}"
        assert abs(predicted / measured - 1) < 0.15
