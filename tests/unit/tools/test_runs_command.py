"""`fabric-ppo runs`: a row for each run, in whatever state its folder is."""

from __future__ import annotations

import datetime
import json
import os

import pytest

from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.process.errors import BAD_INPUT, EnvironmentFault
from fabric_ppo.run.folder import make_folder
from fabric_ppo.tools.cli import main
from tests.fixtures.configs import TINY
from tests.fixtures.logged_runs import UPDATE, write_run
from tests.fixtures.trouble_envs import trouble


def rows_of(capsys, *args):
    assert main(["runs", *map(str, args), "--json"]) == 0
    caught = capsys.readouterr()
    return json.loads(caught.out), caught.err


def aged(folder, hours):
    """Have a run written some hours before a fixed time."""
    for path in [*folder.rglob("*")]:
        os.utime(path, (1.8e9 - 3600 * hours,) * 2)


def test_a_run_that_is_done(tmp_path, capsys):
    path = tmp_path / "torch_logs/2026-01-02_03-04-05_CartPole-v1_x_3"
    aged(write_run(path, [1.0, 2.0, 3.0, 4.0], test=[10.0, 20.0], seed=3), 0)
    (row,), err = rows_of(capsys, tmp_path)
    assert err == ""
    assert row == {
        **{
            "id": f"torch_logs/{path.name}",
            "run_dir": str(path),
            "script": "torch",
            "env_id": "CartPole-v1",
            "seed": 3,
        },
        **{"state": "done", "failure": None, "updates": 4, "total_updates": 4, "progress": 1.0, "problems": []},
        **{"env_steps": 4 * UPDATE, "total_env_steps": 4 * UPDATE, "steps_per_second": 512.0},
        **{"train_return_mean": 4.0, "train_return_episodes": 100, "test_return_mean": 15.0},
        "started": datetime.datetime(2026, 1, 2, 3, 4, 5).astimezone().isoformat(),
        "written": datetime.datetime.fromtimestamp(1.8e9).astimezone().isoformat(),
    }


def test_a_run_that_was_stopped_has_come_as_far_as_its_metrics(tmp_path, capsys):
    write_run(tmp_path / "run", [1.0, 2.5, None])
    (row,), _ = rows_of(capsys, tmp_path)
    assert (row["state"], row["updates"], row["total_updates"], row["progress"]) == ("stopped", 3, 4, 0.75)
    assert (row["env_steps"], row["train_return_mean"], row["test_return_mean"]) == (3 * UPDATE, 2.5, None)
    assert row["steps_per_second"] == pytest.approx(512)


def test_a_run_that_has_gone_on_after_its_end_is_not_done(tmp_path, capsys):
    run = write_run(tmp_path / "run", [1.0, 2.0, 3.0], test=[1.0])
    (run / "checkpoints").mkdir()
    for update, state in ((3, "done"), (4, "stopped")):
        (run / f"checkpoints/update_{update}.ckpt").touch()
        assert rows_of(capsys, tmp_path)[0][0]["state"] == state


def test_a_run_that_failed_has_its_error_until_it_goes_on(tmp_path, capsys):
    flags = {**TINY, "run_dir": str(tmp_path / "logs/run"), "env_id": trouble(does="raise", folder=str(tmp_path))}
    with pytest.raises(EnvironmentFault) as caught:
        train(Config(**flags), verbose=False)
    (row,), _ = rows_of(capsys, tmp_path / "logs")
    assert row["state"] == "failed"
    # the error's text has a character that no file can have
    assert row["failure"] == str(caught.value).splitlines()[0].encode("utf-8", "backslashreplace").decode()
    make_folder(tmp_path / "logs/run", Config(**flags))
    assert rows_of(capsys, tmp_path / "logs")[0][0]["state"] == "stopped"


def test_the_run_that_was_written_last_comes_first(tmp_path, capsys):
    for name, hours in (("a", 2), ("b", 1), ("c", 3), ("d", 1)):
        aged(write_run(tmp_path / name, [1.0]), hours)
    assert [row["id"] for row in rows_of(capsys, tmp_path)[0]] == ["b", "d", "a", "c"]


DAMAGE = {
    "config.yaml": ("a: [", "config.yaml cannot be read"),
    "summary.json": ("{", "summary.json cannot be read"),
    "metrics.jsonl": ('{"step": 8, "update": 1}\n{"st', "metrics.jsonl cannot be read after line 1 of 2"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named_in_one_line_and_the_rest_is_shown(tmp_path, capsys, name):
    text, problem = DAMAGE[name]
    write_run(tmp_path / "whole", [1.0])
    (write_run(tmp_path / "run", [1.0, 2.0], test=[3.0]) / name).write_text(text)
    rows, err = rows_of(capsys, tmp_path)
    assert err == f"warning: {tmp_path / 'run'}: {problem}\n"
    (row,) = [row for row in rows if row["id"] == "run"]
    assert row["problems"] == [problem]
    assert row["env_id"] == "CartPole-v1"
    assert row["updates"] == 2
    assert row["state"] == "done"


@pytest.mark.parametrize(
    "flags",
    [
        {"num_steps": "x", "num_envs": None, "total_timesteps": []},
        {"num_steps": 0, "num_envs": -1},
        {"total_timesteps": 10**30, "env_id": ["a"], "seed": {}},
        {"total_timesteps": 0, "timestep_unit": 3},
    ],
)
def test_flags_of_any_type_are_borne(tmp_path, capsys, flags):
    write_run(tmp_path / "run", [1.0], **flags)
    write_run(tmp_path / "done", [1.0], test=[], **flags)
    assert len(rows_of(capsys, tmp_path)[0]) == 2
    assert main(["runs", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("header", "flags", "total"),
    [
        ("# train_fabric_decoupled.py with --devices=3\n", {}, 8),
        ("# train_torch.py with --devices=2\n", {}, 4),
        ("# train_torch.py\n", {}, 8),
        ("# train_torch.py\n", {"timestep_unit": "iteration"}, 32),
    ],
)
def test_the_length_of_a_run_that_has_just_begun(tmp_path, capsys, header, flags, total):
    """4,096 timesteps of 128 steps in 4 environments on each rank that has some."""
    write_run(tmp_path / "run", [], header=header, **flags)
    (row,), _ = rows_of(capsys, tmp_path)
    assert (row["updates"], row["total_updates"], row["progress"]) == (0, total, 0.0)


def test_the_table_is_plain_columns(tmp_path, capsys):
    write_run(tmp_path / "a b", [1.0], test=[3.0, 4.0])
    write_run(tmp_path / "c", [])
    assert main(["runs", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {len(line) for line in lines} == {12}
    table = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[1:]}
    assert table["a_b"]["test"] == "3.50"
    assert table["a_b"]["transitions"] == f"{UPDATE}/{4 * UPDATE}"
    assert table["c"]["done"] == "0%"
    assert table["c"]["return"] == "-"


def test_a_folder_without_runs_is_no_error(tmp_path, capsys):
    assert rows_of(capsys, tmp_path) == ([], "")
    assert main(["runs", str(tmp_path)]) == 0
    caught = capsys.readouterr()
    assert (caught.out, caught.err) == ("", f"{tmp_path}: no runs in it\n")


def test_no_folder_is_bad_input(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for args, problem in (
        ([], "logs: no such folder; a folder is expected"),
        (["file"], "file: is a file; a folder is expected"),
        (["a", "b"], "b: one LOG_DIR is expected, and no more"),
    ):
        assert main(["runs", *args]) == BAD_INPUT
        assert capsys.readouterr().err == f"error: {problem}\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
