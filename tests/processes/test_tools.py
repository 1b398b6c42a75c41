"""W&B, MLflow and Trackio: each holds one run with one clean curve, whatever has happened to the training."""

from __future__ import annotations

import fnmatch
import gc
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

import train_torch
from fabric_ppo.fast.kernels import kernels
from fabric_ppo.run import checkpoint
from fabric_ppo.run.trackers.tool_process import COMMAND
from fabric_ppo.run.trackers.tool_tracker import ToolTracker
from tests.fixtures.launching import ROOT, free_port, in_fork, printed_in_fork
from tests.fixtures.parts import outcome
from tests.fixtures.processes import FOREVER, PATIENCE
from tests.fixtures.resuming import finish, metrics, on_call
from tests.fixtures.tracked import expected_curves, mlflow_curves, trackio_curves, wandb_run

pytestmark = pytest.mark.processes

FLAGS = {
    **{"track": "tensorboard,wandb,mlflow,trackio", "track_tags": "a,b", "track_timeout": FOREVER},
    **{"checkpoint_every": 2, "num_steps": 16, "num_envs": 2},
}


@pytest.fixture
def tracked_flags(tmp_path, monkeypatch):
    """Flags with everything that the tools write in the test's own folder."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for dtype in (torch.float32, torch.float64):
        kernels(dtype)  # which are else compiled anew, with a line, where the home is empty
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody has logged in
    return FLAGS | {"log_dir": str(tmp_path / "logs")}


def kill_later() -> None:
    """Kill this process when its tools hold all that was logged: some of it will come again."""
    deadline = time.monotonic() + PATIENCE
    for each in [each for each in gc.get_objects() if isinstance(each, ToolTracker)]:
        while (each._step != each._asked or each._since) and time.monotonic() < deadline:
            time.sleep(0.01)
    kill()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(run_dir, flags, updates, module, name, number, how):
    """Train in a fork that is killed at the `number`-th call of a function."""

    def work():
        setattr(module, name, on_call(number, 0, how, getattr(module, name)))
        outcome(run_dir, updates, flags)

    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def assert_clean(run_dir: Path, log_dir: Path) -> None:
    """Each tool holds one run, with the curves of `metrics.jsonl`."""
    expected = expected_curves(run_dir)
    assert expected["Info/learning_rate"]
    assert wandb_run(run_dir)[1] == expected
    assert mlflow_curves(f"sqlite:///{log_dir}/mlflow.db")[1] == expected
    assert trackio_curves(log_dir / "trackio")[2] == expected


def test_a_run_that_is_killed_three_times_is_one_clean_run_in_each_tool(tmp_path, tracked_flags):
    run_dir, log_dir, updates = tmp_path / "run", tmp_path / "logs", 10
    go_on = tracked_flags | {"resume": True}
    # as the fourth rollout begins, as the checkpoint after the sixth update is written, and in the ninth update
    killed(run_dir, tracked_flags, updates, train_torch, "collect", 4, kill_later)
    killed(run_dir, go_on, updates, checkpoint, "save_checkpoint", 2, kill_later)
    killed(run_dir, go_on, updates, train_torch, "ppo_update", 5, kill)
    assert in_fork(outcome, run_dir, updates, go_on) == ""
    assert json.loads((run_dir / "summary.json").read_text())["resumes"] == 3
    assert_clean(run_dir, log_dir)


def test_each_tool_has_configuration_names_artifacts_and_the_summary(tmp_path, tracked_flags):
    run_dir, log_dir = tmp_path / "run", tmp_path / "logs"
    flags = tracked_flags | {"track_group": "g", "capture_video": True}
    ended, out, err = printed_in_fork(outcome, run_dir, 2, flags | {"quiet": True})
    assert (ended, out, err) == ("", "", "")
    assert_clean(run_dir, log_dir)
    records = wandb_run(run_dir)[0]
    (begun,) = [record.run for record in records if record.HasField("run")]
    values = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (begun.project, begun.run_group, list(begun.tags)) == ("fabric-ppo", "g", ["a", "b"])
    assert (begun.display_name, values["num_steps"], values["env_id"]) == ("run", 16, "CartPole-v1")
    kinds = {record.request.log_artifact.artifact.type for record in records if record.HasField("request")}
    kinds |= {record.artifact.type for record in records if record.HasField("artifact")}
    assert {"policy", "video"} <= kinds
    client_run, _ = mlflow_curves(f"sqlite:///{log_dir}/mlflow.db")
    assert client_run.info.run_name == "run"
    assert client_run.info.status == "FINISHED"
    assert client_run.data.params["num_steps"] == "16"
    assert client_run.data.tags.items() >= {("group", "g"), ("a", "true"), ("b", "true")}
    folder = Path(client_run.info.artifact_uri.removeprefix("file://"))
    assert (folder / "policy/policy.safetensors").read_bytes() == (run_dir / "policy.safetensors").read_bytes()
    assert list((folder / "video").rglob("*.mp4"))
    assert json.loads((folder / "summary.json").read_text()) == json.loads((run_dir / "summary.json").read_text())
    name, config, _ = trackio_curves(log_dir / "trackio")
    assert (name, config["num_steps"], config["tags"]) == ("run", 16, ["a", "b"])


HANGS = """
import os, sys, time
sys.path.insert(0, {root!r})
from fabric_ppo.run.trackers import trackio_tool

def hang(self, *given):
    while True:
        time.sleep(1000)

trackio_tool.Trackio.{method} = hang
"""


@pytest.mark.parametrize("method", ["open", "log", "artifact", "close"])
def test_a_tool_that_hangs_is_given_up_with_a_line_and_its_process_is_no_more(
    tmp_path, tracked_flags, monkeypatch, method
):
    """Its deadline is short here: only what hangs for ever must meet it."""
    monkeypatch.setattr(
        "fabric_ppo.run.trackers.tool_tracker.COMMAND", HANGS.format(root=str(ROOT), method=method) + COMMAND
    )
    run_dir, flags = tmp_path / "run", tracked_flags | {"track": "trackio", "track_timeout": 20.0, "quiet": True}
    ended, out, err = printed_in_fork(outcome, run_dir, 2, flags)
    why = f"{tmp_path}/logs/trackio: no answer for 20 s; {later(run_dir)}"
    assert ended == f"NotAllWrittenError: done, but not everything could be written: Trackio ({why})"
    assert out == ""
    assert f"warning: Trackio could not be written ({why}); the run goes on without\n" in err
    assert (run_dir / "policy.safetensors").exists()


def test_a_tool_whose_process_dies_costs_a_warning(tmp_path, tracked_flags, monkeypatch):
    monkeypatch.setattr("fabric_ppo.run.trackers.tool_tracker.COMMAND", "raise SystemExit(7)")
    flags = tracked_flags | {"track": "mlflow", "quiet": True}
    run_dir = tmp_path / "run"
    ended, _, err = printed_in_fork(outcome, run_dir, 2, flags)
    why = f"its process has ended; {later(run_dir)}"
    assert ended == f"NotAllWrittenError: done, but not everything could be written: MLflow ({why})"
    assert f"warning: MLflow could not be written ({why}); the run goes on without\n" in err


def later(run_dir):
    """The end of each line about a tool: the command that sends what it lacks."""
    code = f"from fabric_ppo import Config, train; train(Config(run_dir={str(run_dir)!r}, resume=True))"
    return f"later, all of it is written by {code}"


def lines_of(tool, err):
    """The lines that a tool has caused, and those that no line of this program begins with."""
    return [
        line
        for line in err.splitlines()
        if tool in line or not line.startswith(("edited: ", "replaced: ", "warning: "))
    ]


@pytest.mark.parametrize("tool", ["mlflow", "wandb"])
def test_a_server_that_cannot_be_reached_costs_a_warning_and_gets_all_of_it_later(
    tmp_path, tracked_flags, monkeypatch, tool
):
    """The line has its address, without a password, and what the line has of a command does it."""
    address = f"127.0.0.1:{free_port()}"
    set_server(monkeypatch, tool, address)
    label = {"mlflow": "MLflow", "wandb": "W&B"}[tool]
    run_dir, flags = tmp_path / "run", tracked_flags | {"track": tool, "quiet": True, "track_timeout": 20.0}
    ended, _, err = printed_in_fork(outcome, run_dir, 2, flags)
    assert ended.startswith(
        f"NotAllWrittenError: done, but not everything could be written: {label} (http://{address}: "
    )
    assert ended.endswith(f"; {later(run_dir)})")
    (line,) = lines_of(label, err)
    assert line.startswith(f"warning: {label} could not be written (http://{address}: ")
    assert "secret" not in ended + err
    assert "site-packages" not in ended + err
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)  # as if the server were there: the tool's own files
    assert in_fork(outcome, run_dir, 2, flags | {"resume": True, "track_timeout": FOREVER}) == ""
    found = wandb_run(run_dir) if tool == "wandb" else mlflow_curves(f"sqlite:///{tmp_path}/logs/mlflow.db")
    assert found[1] == expected_curves(run_dir)


def set_server(monkeypatch, tool, address):
    """Name a server by environment variables, to which the first try shows that it is not there."""
    if tool == "mlflow":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@{address}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    else:
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", f"http://{address}")
        monkeypatch.setenv("WANDB_API_KEY", "secret" * 7)


@pytest.mark.parametrize(
    ("mode", "lines"),
    [
        ("disabled", ["W&B: it is disabled by WANDB_MODE, and keeps nothing"]),
        ("onlin", ["warning: W&B could not be written (*: ValidationError: * mode *'onlin'*"]),
    ],
)
def test_modes_of_wandb_that_keep_nothing(tmp_path, tracked_flags, monkeypatch, mode, lines):
    """Each is one line, without a command for files that are not there."""
    monkeypatch.setenv("WANDB_MODE", mode)
    _, _, err = printed_in_fork(outcome, tmp_path / "run", 2, tracked_flags | {"track": "wandb"})
    found = [line for line in err.splitlines() if "W&B" in line or "pydantic" in line or "wandb" in line]
    assert len(found) == len(lines)
    assert all(map(fnmatch.fnmatchcase, found, lines)), found


@pytest.fixture
def mlflow_server(tmp_path):
    """The address of a server on this machine, with a database of its own."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "kept")),
    ]
    with (tmp_path / "server.txt").open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, cwd=tmp_path, start_new_session=True)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
            break
        except OSError:
            time.sleep(0.1)
    assert server.poll() is None, (tmp_path / "server.txt").read_text()
    yield f"http://127.0.0.1:{port}"
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def test_a_run_that_is_killed_is_one_clean_run_on_a_server_of_mlflow(
    tmp_path, tracked_flags, monkeypatch, mlflow_server
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    run_dir, flags = tmp_path / "run", tracked_flags | {"track": "mlflow"}
    killed(run_dir, flags, 6, train_torch, "collect", 4, kill_later)
    assert in_fork(outcome, run_dir, 6, flags | {"resume": True}) == ""
    assert mlflow_curves(mlflow_server)[1] == expected_curves(run_dir)
    assert not (tmp_path / "logs/mlflow.db").exists()


@pytest.mark.parametrize("script", ["torch", "decoupled"])
def test_weights_with_all_tools_are_those_without(tmp_path, tracked_flags, script):
    """H9; of several ranks only the first tracks."""
    alone = finish(script, 2, tmp_path / "alone")
    run_dir = finish(script, 2, tmp_path / "run", **tracked_flags)
    assert (run_dir / "policy.safetensors").read_bytes() == (alone / "policy.safetensors").read_bytes()
    assert metrics(run_dir) == metrics(alone)
    assert_clean(run_dir, tmp_path / "logs")


def test_a_run_that_goes_on_after_its_end_has_one_test_in_each_tool(tmp_path, tracked_flags):
    run_dir = tmp_path / "run"
    assert in_fork(outcome, run_dir, 2, tracked_flags) == ""
    assert in_fork(outcome, run_dir, 4, tracked_flags | {"resume": True}) == ""
    assert_clean(run_dir, tmp_path / "logs")


def test_any_names_will_do(tmp_path, tracked_flags):
    run_dir = tmp_path / "a run, (1) ü"
    flags = tracked_flags | {"track_group": "a/b: ü", "track_tags": "x y,ü=1", "log_dir": str(tmp_path / "my logs")}
    assert in_fork(outcome, run_dir, 2, flags) == ""
    assert_clean(run_dir, tmp_path / "my logs")


ODD_NAMES = (
    *("Game/a//b", "/lead", "trail/", "p/../q", "..", "x" * 300, "x[0]", "x(0)", "timestamp", "run", "__m", "_step"),
)


def test_any_names_of_metrics_will_do(tmp_path, tracked_flags, monkeypatch):
    """Each tool has all of them, under names that it takes, and says nothing of an error."""
    update = train_torch.ppo_update

    def with_odd_names(*args):
        stats = update(*args)
        for index, tag in enumerate(ODD_NAMES):
            stats = stats.with_metric(tag, index)
        return stats

    monkeypatch.setattr(train_torch, "ppo_update", with_odd_names)
    run_dir, log_dir = tmp_path / "run", tmp_path / "logs"
    ended, _, err = printed_in_fork(outcome, run_dir, 2, tracked_flags | {"quiet": True})
    assert ended == ""
    assert not any(tool in err for tool in ("W&B", "MLflow", "Trackio"))
    expected = expected_curves(run_dir)
    assert expected.keys() >= set(ODD_NAMES)
    # points of one metric differ from those of all others
    values = {tuple(points) for points in expected.values()}
    for curves in (
        wandb_run(run_dir)[1],
        mlflow_curves(f"sqlite:///{log_dir}/mlflow.db")[1],
        trackio_curves(log_dir / "trackio")[2],
    ):
        assert {tuple(points) for points in curves.values()} == values


def test_a_run_without_a_test_has_no_score_of_it(tmp_path, tracked_flags):
    run_dir = tmp_path / "run"
    assert in_fork(outcome, run_dir, 2, tracked_flags | {"test_episodes": 0}) == ""
    assert_clean(run_dir, tmp_path / "logs")


def test_a_run_gets_its_earlier_rows_into_a_tool_that_is_named_later(tmp_path, tracked_flags):
    run_dir = tmp_path / "run"
    assert in_fork(outcome, run_dir, 2, tracked_flags | {"track": "jsonl", "test_episodes": 0}) == ""
    assert in_fork(outcome, run_dir, 4, tracked_flags | {"resume": True}) == ""
    assert_clean(run_dir, tmp_path / "logs")
