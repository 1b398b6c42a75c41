"""The door for trackers, tried with some that the package does not know."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from importlib.machinery import PathFinder

import pytest
import yaml

import train_torch
from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError, TrainingError
from fabric_ppo.process.extras import install
from fabric_ppo.run.resolve import resolve
from fabric_ppo.run.trackers.make import make_trackers
from fabric_ppo.run.trackers.tracker import Position
from tests.fixtures.launching import SCRIPTS, printed_in_fork
from tests.fixtures.parts import MODULE, notes, outcome, trained, write_parts
from tests.fixtures.resuming import die, finish, metrics, on_call, train

__all__ = ["write_parts"]


NOTES = """
class Notes(Tracker):
    label = "my notes"

    def start(self, config, run_dir, resumed_at):
        position = type(resumed_at).__name__, *resumed_at, resumed_at.update, resumed_at.env_steps
        note("start", dict(config), str(run_dir), position, run_dir.is_dir())

    def log(self, metrics, step):
        note("log", dict(metrics), step)

    def flush(self):
        note("flush")

    def artifact(self, path, kind):
        note("artifact", str(path), kind, path.is_dir() if kind == "video" else path.stat().st_size)

    def finish(self, summary):
        note("finish", None if summary is None else dict(summary))


class Silent(Tracker):
    \"\"\"Each method is left as it is.\"\"\"
"""
OWN = f"jsonl,{MODULE}:Notes,{MODULE}:Silent"
PER_UPDATE = 32
"""Transitions of an update, of `resuming.TINY`."""


def logged(run_dir, first=0):
    """What `metrics.jsonl` says that a tracker was to be given, from update `first` on."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line.pop("update") for line in lines] == list(range(1, len(lines) + 1))
    return [["log", line, step] for line in lines[first:] if (step := line.pop("step"))]


def of_kind(seen, *kinds):
    return [each for each in seen if each[0] in kinds]


def test_a_tracker_of_ones_own_gets_everything_that_a_run_has(tmp_path, write_parts):
    write_parts(NOTES)
    run_dir = tmp_path / "run"
    assert trained(run_dir, track=OWN, eval_every=2, eval_episodes=1) == ""
    seen = notes()
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["track"] == OWN
    assert seen[0] == ["start", config, str(run_dir), ["Position", 0, 0, 0, 0], True]
    assert of_kind(seen, "log") == logged(run_dir)
    assert [each[2] for each in of_kind(seen, "log")] == [PER_UPDATE, 2 * PER_UPDATE, 3 * PER_UPDATE]
    assert ["Eval/return_mean" in each[1] for each in of_kind(seen, "log")] == [False, True, False]
    policy = run_dir / "policy.safetensors"
    assert of_kind(seen, "artifact") == [["artifact", str(policy), "policy", policy.stat().st_size]]
    assert seen[-1] == ["finish", json.loads((run_dir / "summary.json").read_text())]
    assert seen[-1][1]["test"]["episodes"] == 1
    order = [each[0] for each in seen if each[0] != "flush"]
    assert order == ["start", "log", "log", "log", "artifact", "finish"]
    # a checkpoint, one after two updates and one at the end, is never ahead of what was logged
    assert [each[0] for each in seen[1:7]] == ["log", "log", "flush", "log", "flush", "artifact"]


def test_videos_are_artifacts(tmp_path, write_parts):
    write_parts(NOTES)
    run_dir = tmp_path / "run"
    assert trained(run_dir, track=f"{MODULE}:Notes", capture_video=True) == ""
    assert of_kind(notes(), "artifact")[1:] == [["artifact", str(run_dir / "test_videos"), "video", True]]


def test_a_tracker_of_a_resumed_run_is_told_where_it_goes_on(tmp_path, monkeypatch, write_parts):
    """A run that is killed after its third update goes on after its second: the third comes again."""
    write_parts(NOTES)
    run_dir, flags = tmp_path / "run", {"track": OWN, "checkpoint_every": 2}
    with monkeypatch.context() as patch:
        patch.setattr(SCRIPTS["torch"], "collect", on_call(4, 0, die, SCRIPTS["torch"].collect))
        assert train("torch", 1, run_dir, **flags) == ["exit code 9"]
    before = notes()
    assert [each[0] for each in before if each[0] != "flush"] == ["start", "log", "log", "log"]
    finish("torch", 1, run_dir, resume=True, **flags)
    seen = notes()
    assert seen[0][3] == ["Position", *Position(2, 2 * PER_UPDATE), *Position(2, 2 * PER_UPDATE)]
    assert of_kind(seen, "log") == logged(run_dir, first=2)
    assert len(of_kind(seen, "log")) == 4
    assert seen[-1] == ["finish", json.loads((run_dir / "summary.json").read_text())]
    again = of_kind(before, "log")[2], of_kind(seen, "log")[0]
    third, once_more = ({tag: each for tag, each in one[1].items() if "Time/" not in tag} for one in again)
    assert third == once_more


def test_a_run_that_fails_has_no_summary(tmp_path, monkeypatch, write_parts):
    write_parts(NOTES)

    def fail():
        raise TrainingError("told to fail")

    monkeypatch.setattr(train_torch, "ppo_update", on_call(3, 0, fail, train_torch.ppo_update))
    run_dir = tmp_path / "run"
    assert trained(run_dir, track=OWN) == "TrainingError: told to fail"
    seen = notes()
    assert [each for each in seen if each[0] != "flush"][1:] == [*logged(run_dir), ["finish", None]]
    assert len(logged(run_dir)) == 2


BREAKS = """
class Breaks(Tracker):
    def {method}(self, *given):
        note("{method}")
        {raises}
"""
WHY = r"\(ValueError: no network in \S*parts_of_the_user.py, line \d+\)"


@pytest.mark.parametrize("method", ["log", "flush", "artifact", "finish"])
def test_a_tracker_that_fails_costs_its_own_output_only(tmp_path, write_parts, method):
    """The others have everything, the weights are the same, and the end names it, once."""
    write_parts(BREAKS.format(method=method, raises='raise ValueError("no network")'))
    alone, run_dir = tmp_path / "alone", tmp_path / "run"
    assert trained(alone) == ""
    flags = {"track": f"{MODULE}:Breaks,jsonl,tensorboard"}
    ended, _, printed = printed_in_fork(outcome, run_dir, 3, flags)
    assert re.fullmatch(f"NotAllWrittenError: done, but not everything could be written: {MODULE}:Breaks {WHY}", ended)
    assert printed.count("no network") == 1
    assert re.search(f"warning: {MODULE}:Breaks could not be written {WHY}; the run goes on without\n", printed)
    assert len(notes()) == {"log": 3, "flush": 2, "artifact": 1, "finish": 1}[method]
    assert (run_dir / "policy.safetensors").read_bytes() == (alone / "policy.safetensors").read_bytes()
    assert metrics(run_dir) == metrics(alone)
    assert list(run_dir.glob("events.out.tfevents.*"))


def test_a_tracker_that_cannot_start_is_refused_in_one_line(tmp_path, write_parts):
    """And leaves nothing behind, whatever others have written before it."""
    write_parts(BREAKS.format(method="start", raises='raise ValueError("no network")'))
    run_dir = tmp_path / "run"
    ended = trained(run_dir, track=f"tensorboard,jsonl,{MODULE}:Breaks")
    assert re.fullmatch(f"ConfigError: --track {MODULE}:Breaks: it cannot start {WHY}", ended)
    assert not run_dir.exists()


def test_a_tracker_that_cannot_start_takes_nothing_from_a_run_that_is_resumed(tmp_path, write_parts):
    write_parts(BREAKS.format(method="start", raises='raise ValueError("no network")'))
    run_dir = tmp_path / "run"
    assert trained(run_dir) == ""
    names = sorted(path.name for path in run_dir.iterdir())
    assert trained(run_dir, track=f"{MODULE}:Breaks", resume=True).startswith("ConfigError: --track")
    assert sorted(path.name for path in run_dir.iterdir()) == names


@pytest.mark.parametrize("method", ["__init__", "start", "log"])
def test_a_tracker_that_calls_sys_exit_is_one_that_fails(tmp_path, write_parts, method):
    write_parts(BREAKS.format(method=method, raises="raise SystemExit(4)"))
    ended = trained(tmp_path / "run", track=f"{MODULE}:Breaks")
    assert "SystemExit: 4 in " in ended
    assert ended.startswith("NotAll" if method == "log" else "ConfigError: ")


@pytest.mark.parametrize("raised", ["KeyboardInterrupt()", "GeneratorExit()", "BaseException()"])
@pytest.mark.parametrize("method", ["__init__", "start", "log", "flush", "finish"])
def test_a_tracker_that_raises_what_is_no_exception_is_one_that_fails(tmp_path, write_parts, method, raised):
    """Nobody has pressed Ctrl-C."""
    write_parts(BREAKS.format(method=method, raises=f"raise {raised}"))
    ended = trained(tmp_path / "run", track=f"{MODULE}:Breaks")
    assert f"{raised.removesuffix('()')}: " in ended
    assert ended.startswith("ConfigError: " if method in ("__init__", "start") else "NotAll")


SEVERAL_LINES = r"""raise ValueError("first\n  second\x1b[31m\t" + "long " * 1000)"""


@pytest.mark.parametrize("method", ["__init__", "start", "log", "finish"])
@pytest.mark.parametrize("kind", ["ValueError", "OSError"])
def test_an_error_of_several_lines_is_one_that_can_be_printed(tmp_path, write_parts, method, kind):
    write_parts(BREAKS.format(method=method, raises=SEVERAL_LINES.replace("ValueError", kind)))
    ended, _, printed = printed_in_fork(outcome, tmp_path / "run", 2, {"track": f"{MODULE}:Breaks", "quiet": True})
    for text in (ended, printed):
        assert "\x1b" not in text
        assert all(line.isprintable() and len(line) < 2000 for line in text.splitlines())
    assert ended.startswith(("ConfigError: ", "NotAllWrittenError: "))
    assert len([line for line in printed.splitlines() if "second" in line]) == (method in ("log", "finish"))


def test_what_was_not_written_is_no_artifact(tmp_path, write_parts, monkeypatch):
    """An older file of that name is none either."""
    write_parts(NOTES)

    def fail(*_):
        raise OSError(28, "No space left on device")

    run_dir = tmp_path / "run"
    assert trained(run_dir, track=f"{MODULE}:Notes") == ""
    assert len(of_kind(notes(), "artifact")) == 1
    monkeypatch.setattr("fabric_ppo.run.run.save_policy", fail)
    for folder, flags in ((run_dir, {"resume": True, "updates": 4}), (tmp_path / "new", {})):
        ended, out, _ = printed_in_fork(outcome, folder, flags.pop("updates", 3), {"track": f"{MODULE}:Notes", **flags})
        reason = "[Errno 28] No space left on device"
        assert ended == f"NotAllWrittenError: done, but not everything could be written: policy.safetensors ({reason})"
        assert of_kind(notes(), "artifact") == []
    assert "\nagain " not in out


@pytest.mark.parametrize(
    ("track", "command"),
    [("tensorboard", "tensorboard --logdir "), ("jsonl,tensorboard", "tensorboard --logdir "), ("none", "")],
)
def test_the_line_about_curves_points_to_what_is_there(tmp_path, no_launcher, track, command):
    _, out, _ = printed_in_fork(outcome, tmp_path / "run", 2, {"track": track})
    found = [line for line in out.splitlines() if line.startswith("curves")]
    assert [line.startswith(f"curves  {command}") for line in found] == ([True] if command else [])


def test_the_line_about_curves_of_json_lines_is_a_command_that_draws_them(tmp_path, no_launcher):
    _, out, _ = printed_in_fork(outcome, tmp_path / "a run", 2, {"track": "jsonl"})
    (line,) = [line for line in out.splitlines() if line.startswith("curves")]
    subprocess.run(line.removeprefix("curves "), shell=True, check=True)
    assert (tmp_path / "a run/curves.svg").is_file()


HANGS = """
import threading

class Hangs(Tracker):
    def {method}(self, *given):
        threading.Event().wait()
"""


@pytest.mark.parametrize("method", ["log", "flush", "artifact", "finish"])
def test_a_tracker_that_hangs_is_given_up(tmp_path, write_parts, method):
    """It is called no more, so the run waits for it once; the others have everything."""
    write_parts(HANGS.format(method=method))
    run_dir, flags = tmp_path / "run", {"track": f"{MODULE}:Hangs,jsonl", "track_timeout": 0.5}
    ended, _, printed = printed_in_fork(outcome, run_dir, 3, flags)
    name = f"{MODULE}:Hangs"
    assert ended == f"NotAllWrittenError: done, but not everything could be written: {name} (no answer for 0.5 s)"
    assert printed.count("no answer") == 1
    assert len(logged(run_dir)) == 3


@pytest.mark.parametrize(("method", "what"), [("__init__", "cannot be made"), ("start", "cannot start")])
def test_a_tracker_that_hangs_before_the_first_update_is_refused(tmp_path, write_parts, method, what):
    write_parts(HANGS.format(method=method))
    run_dir = tmp_path / "run"
    ended = trained(run_dir, track=f"jsonl,{MODULE}:Hangs", track_timeout=0.5)
    assert ended == f"ConfigError: --track {MODULE}:Hangs: it {what} (no answer for 0.5 s)"
    assert not run_dir.exists()


THREADS = """
import threading

class Threads(Tracker):
    def __init__(self):
        self.thread = threading.get_ident()

    def start(self, config, run_dir, resumed_at):
        note(self.thread == threading.get_ident())

    def log(self, metrics, step):
        note(self.thread == threading.get_ident())

    def finish(self, summary):
        note(self.thread == threading.get_ident())
"""


def test_all_calls_of_a_tracker_come_from_one_thread(tmp_path, write_parts):
    """Connections to databases, for one, want that."""
    write_parts(THREADS)
    assert trained(tmp_path / "run", track=f"{MODULE}:Threads") == ""
    assert notes() == [[True]] * 5


@pytest.mark.parametrize(
    ("tool", "needs"), [("wandb", "wandb"), ("trackio", "trackio"), ("mlflow", "mlflow and sqlalchemy")]
)
def test_a_tool_that_is_not_installed_is_refused_in_one_line(tmp_path, monkeypatch, no_launcher, tool, needs):
    """Also where a folder of its name lies where the user is, as W&B makes one."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    find = importlib.util.find_spec

    def here(name):
        return PathFinder.find_spec(name, [str(tmp_path)])

    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: here(name) if name in needs.split(" and ") else find(name)
    )
    ended = trained(tmp_path / "run", track=f"jsonl,{tool}")
    assert ended == f"ConfigError: --track {tool}: needs {needs}: {install(tool)}"
    assert not (tmp_path / "run").exists()


WRONG = """
class NoTracker:
    pass

class Raises(Tracker):
    def __init__(self):
        raise ValueError("no\\nkey")

class NeedsMore(Tracker):
    def __init__(self, project):
        pass

a_number = 3
"""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (f"{MODULE}:NoTracker", "a subclass of fabric_ppo.run.trackers.tracker.Tracker is expected"),
        (f"{MODULE}:Raises", "it raised ValueError: no\\nkey"),
        (f"{MODULE}:NeedsMore", "it raised TypeError: "),
        (f"{MODULE}:a_number", "is a int; a function or class is expected"),
        (f"{MODULE}:Missing", "cannot be imported "),
        ("no_such_module:Tracker", "cannot be imported "),
        ("neptune", "none, tensorboard, jsonl, wandb, mlflow, trackio or module:Class is expected"),
        ("json_lines", "here it is jsonl"),
    ],
)
def test_what_is_no_tracker_is_refused_in_one_line_before_anything_is_written(tmp_path, write_parts, name, why):
    write_parts(WRONG)
    run_dir = tmp_path / "run"
    ended = trained(run_dir, track=f"jsonl,{name}")
    assert ended.startswith(f"ConfigError: --track {name}: {why}")
    assert "\n" not in ended
    assert not run_dir.exists()


@pytest.mark.parametrize(("trackers", "has_lines", "has_events"), [("jsonl", 1, 0), ("tensorboard", 0, 1)])
def test_a_built_in_tracker_alone_leaves_no_trace_of_the_other(tmp_path, no_launcher, trackers, has_lines, has_events):
    run_dir = tmp_path / "run"
    assert trained(run_dir, track=trackers) == ""
    assert len(list(run_dir.glob("metrics.jsonl"))) == has_lines
    assert len(list(run_dir.glob("events.out.tfevents.*"))) == has_events


def test_none_is_no_tracker():
    assert make_trackers(resolve(Config(track="none"))) == {}
    with pytest.raises(ConfigError, match="--track none: "):
        Config(track="none,jsonl")
