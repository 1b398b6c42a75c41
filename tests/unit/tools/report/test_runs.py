"""Runs of a report: their names, and machines and versions from their checkpoints."""

from __future__ import annotations

import pytest

from fabric_ppo.process.files import Checkpoint
from fabric_ppo.tools import cli
from fabric_ppo.tools.report.machines import machines_of
from fabric_ppo.tools.report.runs import read_runs
from tests.fixtures.run_folders import columns, write_run


def test_names_are_the_shortest_that_differ(tmp_path):
    paths = [tmp_path / one / two for one, two in (("a", "seed_1"), ("b", "seed_1"), ("a", "seed_2"))]
    runs = read_runs([write_run(path, columns(1)) for path in paths])
    assert [run.name for run in runs] == ["a/seed_1", "b/seed_1", "a/seed_2"]
    assert [run.name for run in read_runs([paths[0], paths[2]])] == ["seed_1", "seed_2"]


def test_a_folder_is_read_once(tmp_path):
    run = write_run(tmp_path / "run", columns(1))
    (tmp_path / "link").symlink_to(run)
    assert len(read_runs([run, run / ".", tmp_path / "link"])) == 1


def test_machines_are_those_of_the_newest_whole_checkpoint(tmp_path):
    runs = [write_run(tmp_path / name, columns(1)) for name in ("a", "b", "c")]
    for run, machine in zip(runs, ("Abacus", "Abacus", "Loom"), strict=True):
        (run / "checkpoints").mkdir()
        values = {"surroundings": {"machine": machine, "versions": {"torch": "9.1"}}}
        (run / "checkpoints/update_1.ckpt").write_bytes(Checkpoint({}, values).to_bytes())
        (run / "checkpoints/update_2.ckpt").write_bytes(b"torn")
    read = read_runs(runs)
    rows = [("Processor", "Abacus"), ("Libraries", "torch 9.1")]
    assert machines_of(read[:2]) == [("Machine and versions", rows)]
    titles = [title for title, _ in machines_of(read)]
    assert titles == ["Machine and versions of a, b", "Machine and versions of c"]
    assert machines_of([]) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [([], "was stopped before its end."), (["failure.txt"], "has failed: it raised <b>.")],
)
def test_what_a_run_is_that_has_not_finished_is_noted(tmp_path, files, expected):
    folder = write_run(tmp_path / "run", columns(3))
    for name in ("summary.json", "policy.safetensors"):
        (folder / name).unlink()
    for name in files:
        (folder / name).write_text("it raised <b>\n")
    assert read_runs([folder])[0].notes[0] == f"The run {expected} This is what there is so far."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "The run has failed."),
        (b"\xff\x1b[31m " + b"x" * 5000, "The run has failed: \ufffd\\x1b[31m xxx"),
        ("env ü: step 3: it raised.\nmore".encode(), "The run has failed: env ü: step 3: it raised. This"),
    ],
)
def test_why_a_run_failed_is_quoted_in_one_line(tmp_path, content, words):
    folder = write_run(tmp_path / "run", columns(3))
    (folder / "failure.txt").write_bytes(content)
    note = read_runs([folder])[0].notes[0]
    assert note.startswith(words)
    assert note.isprintable()
    assert len(note) < 600


def test_a_folder_of_runs_stands_for_all_of_them(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"cart/seed_{seed}", columns(3), seed=seed)
    assert cli.main(["report", str(tmp_path / "cart"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "seed_1" in page
    assert "seed_2" in page


def test_long_names_are_short_in_sentences(tmp_path):
    names = [f"2026-11-27_15-03-{second}_CartPole-v1_{'x' * 80}_{second}" for second in range(10, 22)]
    runs = read_runs([write_run(tmp_path / name, columns(1)) for name in names])
    assert [run.name for run in runs] == names
    assert all(len(run.short) <= 24 for run in runs)
    assert len({run.short for run in runs}) == 12
