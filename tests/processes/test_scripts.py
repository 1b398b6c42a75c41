"""The scripts under their real launchers: what a run leaves behind, and how bad input is answered."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import yaml

from fabric_ppo import load_agent
from tests.fixtures.launching import BIN, ROOT, clean_environment, command, run, run_ranks
from tests.fixtures.processes import PATIENCE
from tests.fixtures.resuming import config_of

TINY = ("--num-steps", "16", "--total-timesteps", "200", "--update-epochs", "1", "--test-episodes", "2", "--seed", "3")


SUMMARY = [
    "script",
    "env_id",
    "seed",
    "world_size",
    "total_timesteps",
    "env_steps",
    "updates",
    "ended_by",
    "gradient_steps",
    "wall_seconds",
    "train_seconds",
    "steps_per_second",
    "train_return_mean",
    "train_return_episodes",
    "train_info",
    "resumes",
    "exact_resume",
    "test",
]


TAGS = [
    "Rewards/rew_avg",
    "Game/ep_len_avg",
    "Rewards/rew_last_100",
    "Game/episodes",
    "Loss/policy_loss",
    "Loss/value_loss",
    "Loss/entropy_loss",
    "Info/learning_rate",
    "Info/approx_kl",
    "Info/clip_fraction",
    "Info/explained_variance",
    "Info/grad_norm",
    "Time/step_per_second",
    "Time/rollout_seconds",
    "Time/update_seconds",
]


TEXT_ENV = """
import gymnasium

class Text(gymnasium.Env):
    observation_space = gymnasium.spaces.Text(5)
    action_space = gymnasium.spaces.Discrete(2)

gymnasium.register("Text-v0", Text)
"""


@pytest.mark.parametrize(("script", "world_size"), [("torch", 0), ("torch", 2), ("fabric", 0), ("fabric", 2)])
def test_a_run_leaves_a_complete_folder(tmp_path, script, world_size):
    done = run(command(script, world_size, *TINY), tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "logs" / f"{script}_logs").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_CartPole-v1_default_3", folder.name)
    summary = json.loads((folder / "summary.json").read_text())
    ranks = max(world_size, 1)
    updates = 200 // (16 * 2 * ranks)
    assert list(summary) == SUMMARY
    assert summary["env_steps"] == updates * 16 * 2 * ranks
    assert (summary["script"], summary["world_size"], summary["updates"]) == (script, ranks, updates)
    assert len(summary["test"]["returns"]) == summary["test"]["episodes"] == 2
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [16 * 2 * ranks * (update + 1) for update in range(updates)]
    assert set().union(*lines) == {*TAGS, "step", "update"}
    assert _event_scalars(folder) == {
        (tag, line["step"]): pytest.approx(line[tag], rel=1e-6) for line in lines for tag in TAGS if tag in line
    } | {("Test/cumulative_reward", summary["env_steps"]): pytest.approx(summary["test"]["return_mean"])}
    assert load_agent(folder).act([0.0, 0.0, 0.0, 0.0]) in (0, 1)
    assert re.search(r"^again   cd .+ -m fabric_ppo evaluate", done.stdout, re.MULTILINE)
    assert f"is rounded down to {summary['env_steps']}" in done.stderr


def _event_scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    assert "hyperparameters/text_summary" in events.Tags()["tensors"]
    scalars = {(tag, each.step): each.value for tag in events.Tags()["scalars"] for each in events.Scalars(tag)}
    if not scalars:  # newer writers store scalars as tensors
        scalars = {
            (tag, each.step): each.tensor_proto.float_val[0]
            for tag in events.Tags()["tensors"]
            for each in events.Tensors(tag)
            if not tag.endswith("text_summary")
        }
    return scalars


def test_a_runs_config_can_be_passed_back(tmp_path):
    first = run(command("torch", 0, *TINY, "--run-dir", "first", "--hidden-sizes", "8", "--no-anneal-lr"), tmp_path)
    assert first.returncode == 0, first.stderr
    again = run(command("fabric", 0, "--config", "first/config.yaml", "--run-dir", "again"), tmp_path)
    assert again.returncode == 0, again.stderr
    assert "ignoring --cuda of another script" in again.stderr
    assert (tmp_path / "first/policy.safetensors").read_bytes() == (tmp_path / "again/policy.safetensors").read_bytes()
    overridden = run(command("torch", 0, "--config", "first/config.yaml", "--run-dir", "new", "--seed", "4"), tmp_path)
    assert overridden.returncode == 0, overridden.stderr
    assert yaml.safe_load((tmp_path / "new/config.yaml").read_text())["seed"] == 4


def test_a_retired_id_runs_its_successor(tmp_path):
    done = run(command("torch", 0, *TINY, "--env-id", "LunarLander-v2", "--run-dir", "run"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("LunarLander-v2 is retired in Gymnasium .*: running its successor", done.stderr)) == 1
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["env_id"] == "LunarLander-v3"
    assert json.loads((tmp_path / "run/summary.json").read_text())["env_id"] == "LunarLander-v3"


def test_the_command_line_checks_launches_and_evaluates(tmp_path):
    def fabric_ppo(*args):
        env = clean_environment(PYTHONPATH=str(ROOT))
        return subprocess.run(
            [sys.executable, "-m", "fabric_ppo", *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=env,
        )

    wrong = fabric_ppo("train", "fabric", "--devices", "2", "--num-envs", "0")
    assert (wrong.returncode, wrong.stderr) == (2, "error: --num-envs 0: a whole number from 1 up is expected\n")
    short = fabric_ppo("train", "torch", "--devices", "3", "--total-timesteps", "700")
    assert (short.returncode, short.stderr.count("\n")) == (2, 1)
    nowhere = fabric_ppo("train", "torch", "--num-nodes", "2")
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (2, 1)
    assert "--main-address and --main-port of host 0 are needed too" in nowhere.stderr
    done = fabric_ppo("train", "fabric", "--devices", "2", "--accelerator", "cpu", *TINY, "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/summary.json").read_text())["world_size"] == 2
    tested = fabric_ppo("evaluate", "run", "--episodes", "3", "--seed", "7", "--json")
    result = json.loads(tested.stdout)
    assert list(result) == ["episodes", "cut_off", "return_mean", "return_std", "length_mean", "returns"]
    assert result["return_mean"] == pytest.approx(sum(result["returns"]) / 3)
    missing = fabric_ppo("evaluate", "nowhere")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    drawn = fabric_ppo("plot", "run", "--out", "curve.png")
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--env-id", "CartPol-v1"], "error: --env-id CartPol-v1: unknown environment; did you mean CartPole-v1"),
        (["--nun-envs", "3"], "error: --nun-envs: unknown flag; did you mean --num-envs?"),
        (["--gamma", "nan"], "error: --gamma nan: a number from 0 to 1 is expected"),
        (["--total-timesteps", "10"], "error: --total-timesteps 10: at least 256"),
        (["--run-dir", "taken"], "error: --run-dir {here}/taken: holds a run already"),
        (["--config", "nothing.yaml"], "error: --config nothing.yaml: cannot be read"),
        (["--config", "odd.yaml"], "error: --config odd.yaml: unknown key num_enws; did you mean --num-envs?"),
        (["--env-id", "texts:Text-v0"], "error: --env-id texts:Text-v0: observation space Text"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, flags, said):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/config.yaml").write_text("")
    (tmp_path / "odd.yaml").write_text("num_enws: 3")
    (tmp_path / "texts.py").write_text(TEXT_ENV)
    before = sorted(tmp_path.glob("*"))
    done = run(command("torch", 0, *flags), tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(said.format(here=tmp_path))
    assert done.stderr.count("\n") == 1
    assert [path for path in sorted(tmp_path.glob("*")) if path.name != "__pycache__"] == before


def test_cuda_without_a_device_is_an_error(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    done = run(command("torch", 0, "--cuda"), tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: --cuda: 1 CUDA device is needed here, 0 found\n")


def test_help_needs_no_torch(tmp_path):
    code = "import sys, runpy; sys.argv = ['train_fabric.py', '--help']\n"
    code += f"try: runpy.run_path({str(ROOT / 'train_fabric.py')!r}, run_name='__main__')\n"
    code += "except SystemExit as stop: print('status', stop.code, 'torch' in sys.modules)"
    env = clean_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=env, timeout=PATIENCE
    )
    assert "--per-rank-batch-size" in done.stdout
    assert "status 0 False" in done.stdout


def test_the_console_script_is_the_module(tmp_path):
    done = subprocess.run([str(BIN / "fabric-ppo"), "--help"], capture_output=True, text=True, timeout=PATIENCE)
    assert "evaluate RUN_DIR" in done.stdout


def test_different_flags_on_different_ranks_are_named(tmp_path):
    configs = [config_of("torch", 2, tmp_path / "run", gamma=gamma) for gamma in (0.99, 0.9)]
    for said in run_ranks("torch", configs):
        assert "ConfigError: rank 0 and rank 1 were started with different flags: --gamma 0.99 and 0.9" in said
    assert not (tmp_path / "run").exists()
