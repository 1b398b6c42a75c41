"""Flags of other PPO programs, by their own names: each is answered with the flag of ours."""

from __future__ import annotations

import dataclasses
import re

import pytest

from fabric_ppo.config import SCRIPT_CONFIGS, Config
from fabric_ppo.config_names import notes, same_names
from fabric_ppo.process.errors import flag
from fabric_ppo.tools.commands import evaluate, train
from fabric_ppo.tools.flag_hints import flag_hint
from tests.fixtures.flags import refusal
from tests.fixtures.launching import ROOT

pytestmark = pytest.mark.usefixtures("no_launcher")

STABLE_BASELINES3 = {
    "n_steps": "--num-steps",
    "batch_size": "--per-rank-batch-size",
    "n_epochs": "--update-epochs",
    "clip_range": "--clip-coef",
    "clip_range_vf": "--clip-vloss",
    "normalize_advantage": "--normalize-advantages",
    "use_sde": "--state-dependent-std",
    "sde_sample_freq": "--state-dependent-std",
    "tensorboard_log": "--log-dir",
    "policy": "--recurrent",
    "policy_kwargs": "--hidden-sizes",
    "net_arch": "--hidden-sizes",
    "activation_fn": "--activation-function",
    "features_extractor_class": "--encoder",
    "lstm_hidden_size": "--recurrent-size",
    "share_features_extractor": "--encoder",
    "verbose": "--quiet",
    "device": "--cuda",
    "progress_bar": "--quiet",
    "tb_log_name": "--exp-name",
    "n_eval_episodes": "--eval-episodes",
    "eval_freq": "--eval-every",
    "save_freq": "--checkpoint-every",
    "norm_obs": "--normalize-observations",
    "norm_reward": "--normalize-rewards",
    "callbacks": "--callback",
    "optimizer_class": "--optimizer",
    "weight_decay": "--optimizer-kwargs",
}
"""Arguments of its PPO, `learn` and callbacks: a flag that the answer names."""
EDITS = ("huber", "kl_coef", "dropout", "muon", "grad_clip_value", "dual_clip")
EDITS += ("actor_lr", "critic_lr", "freeze_encoder", "vtrace", "l2_coef", "aux_coef", "batch_norm", "clip_ratio_high")
"""Wishes that no flag has, and an edit of the code grants."""
ZOO = {
    "algo": "--recurrent",
    "env": "--env-id",
    "n_timesteps": "--total-timesteps",
    "n_envs": "--num-envs",
    "log_folder": "--log-dir",
    "log_interval": "--track",
    "trained_agent": "--init-from",
    "vec_env": "--env-backend",
    "gym_packages": "--env-id",
    "hyperparams": "--config",
    "conf_file": "--config",
    "optimize_hyperparameters": "--config",
    "n_trials": "--config",
    "trackers": "--track",
    "wandb_project_name": "--track-project",
    "wandb_entity": "--track",
    "progress": "--quiet",
    "normalize": "--normalize-observations",
    "lr_schedule": "--anneal-lr",
}
CLEANRL = {
    "env_name": "--env-id",
    "gym_id": "--env-id",
    "norm_adv": "--normalize-advantages",
    "num_minibatches": "--per-rank-batch-size",
    "minibatch_size": "--per-rank-batch-size",
    "num_iterations": "--total-timesteps",
    "wandb": "--track",
    "save_model": "--run-dir",
    "upload_model": "--run-dir",
    "hf_entity": "--run-dir",
}
RLLIB = {
    "lr": "--learning-rate",
    "train_batch_size": "--num-steps",
    "train_batch_size_per_learner": "--num-steps",
    "sgd_minibatch_size": "--per-rank-batch-size",
    "num_sgd_iter": "--update-epochs",
    "num_epochs": "--update-epochs",
    "num_workers": "--num-envs",
    "num_rollout_workers": "--num-envs",
    "num_env_runners": "--num-envs",
    "num_envs_per_env_runner": "--num-envs",
    "rollout_fragment_length": "--num-steps",
    "lambda": "--gae-lambda",
    "lambda_": "--gae-lambda",
    "clip_param": "--clip-coef",
    "vf_clip_param": "--clip-vloss",
    "vf_loss_coeff": "--vf-coef",
    "entropy_coeff": "--ent-coef",
    "kl_coeff": "--target-kl",
    "kl_target": "--desired-kl",
    "grad_clip": "--max-grad-norm",
    "num_gpus": "--cuda",
    "fcnet_hiddens": "--hidden-sizes",
    "fcnet_activation": "--activation-function",
    "vf_share_layers": "--shared-trunk",
    "use_lstm": "--recurrent",
    "lstm_cell_size": "--recurrent-size",
    "max_seq_len": "--sequence-length",
    "evaluation_interval": "--eval-every",
    "checkpoint_freq": "--checkpoint-every",
    "observation_filter": "--normalize-observations",
    "env_config": "--env-kwargs",
    "stop_reward": "--stop-at-return",
}
RSL_RL = {
    "task": "--env-id",
    "num_steps_per_env": "--num-steps",
    "max_iterations": "--total-timesteps",
    "save_interval": "--checkpoint-every",
    "experiment_name": "--exp-name",
    "run_name": "--exp-name",
    "num_learning_epochs": "--update-epochs",
    "num_mini_batches": "--per-rank-batch-size",
    "value_loss_coef": "--vf-coef",
    "use_clipped_value_loss": "--clip-vloss",
    "entropy_coef": "--ent-coef",
    "lam": "--gae-lambda",
    "schedule": "--desired-kl",
    "actor_hidden_dims": "--hidden-sizes",
    "activation": "--activation-function",
    "init_noise_std": "--log-std-init",
    "empirical_normalization": "--normalize-observations",
    "load_run": "--init-from",
    "checkpoint": "--init-from",
    "logger": "--track",
    "headless": "--capture-video",
    "video": "--capture-video",
    "distributed": "--devices",
}
SAMPLE_FACTORY = {
    "experiment": "--exp-name",
    "train_dir": "--log-dir",
    "num_envs_per_worker": "--num-envs",
    "num_batches_per_epoch": "--per-rank-batch-size",
    "rollout": "--num-steps",
    "recurrence": "--sequence-length",
    "use_rnn": "--recurrent",
    "rnn_size": "--recurrent-size",
    "rnn_type": "--recurrent",
    "rnn_num_layers": "--recurrent-size",
    "train_for_env_steps": "--total-timesteps",
    "train_for_seconds": "--total-timesteps",
    "save_every_sec": "--checkpoint-every",
    "ppo_clip_ratio": "--clip-coef",
    "ppo_clip_value": "--clip-vloss",
    "exploration_loss_coeff": "--ent-coef",
    "value_loss_coeff": "--vf-coef",
    "lr_schedule_kl_threshold": "--desired-kl",
    "adam_beta1": "--optimizer-kwargs",
    "normalize_input": "--normalize-observations",
    "normalize_returns": "--normalize-rewards",
    "nonlinearity": "--activation-function",
    "encoder_conv_architecture": "--encoder",
    "encoder_mlp_layers": "--hidden-sizes",
    "policy_initialization": "--ortho-init",
    "actor_critic_share_weights": "--shared-trunk",
    "adaptive_stddev": "--state-dependent-std",
    "initial_stddev": "--log-std-init",
    "with_wandb": "--track",
    "env_framestack": "--frame-stack",
    "env_frameskip": "--env-preset",
    "async_rl": "--overlap",
    "restart_behavior": "--resume",
    "save_video": "--capture-video",
    "no_render": "--capture-video",
}
PROGRAMS = {"sb3": STABLE_BASELINES3, "zoo": ZOO, "cleanrl": CLEANRL, "rllib": RLLIB, "rsl_rl": RSL_RL}
PROGRAMS["sample_factory"] = SAMPLE_FACTORY
NAMES = [pair for names in PROGRAMS.values() for pair in names.items()]


@pytest.mark.parametrize(("name", "ours"), NAMES)
def test_another_programs_flag_names_ours(name, ours):
    """With hyphens or underscores, with its value beside it or behind an equals sign."""
    message = refusal(["--" + name.replace("_", "-"), "7"])
    assert message.startswith(f"{flag(name)}: unknown flag; ")
    assert ours in re.findall(r"--[\w-]+", message.partition("; ")[2]), message
    assert refusal([f"--{name}=7"]) == message


@pytest.mark.parametrize(("name", "ours"), NAMES)
def test_a_yaml_file_has_the_same_hints(name, ours, tmp_path):
    path = tmp_path / "flags.yaml"
    path.write_text(f"seed: 3\n{name}: 7\n")
    message = refusal(["--config", str(path)])
    assert message == f"--config {path}: unknown key {name}; {refusal([flag(name)]).partition('; ')[2]}"


def test_a_file_of_the_zoo_is_answered_with_one_line(tmp_path):
    """It has the flags of each environment below its id."""
    path = tmp_path / "ppo.yml"
    path.write_text("CartPole-v1:\n  n_envs: 8\n  n_timesteps: !!float 1e5\n  policy: 'MlpPolicy'\n")
    message = refusal(["--config", str(path)])
    assert message == f"--config {path}: unknown key CartPole-v1; flags at the top level of the file are expected"


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("num-minibatches", "num-steps x num-envs / number of minibatches"),
        ("batch-size", "the same number for one process, for several the rows of all divided by their number"),
        ("max-iterations", "iterations x num-steps x num-envs x ranks"),
        ("eval-freq", "counts updates: steps of all environments / (num-steps x num-envs x ranks)"),
        ("value-loss-coef", "half of the squared error"),
        ("init-noise-std", "logarithm"),
        ("lr-schedule", "linearly to zero"),
        ("device", "fabric run --accelerator=cuda"),
        ("trackers", "tensorboard, jsonl, wandb, mlflow, trackio"),
    ],
)
def test_where_units_differ_the_line_converts(name, how):
    assert how in refusal([f"--{name}", "4"])


def test_what_is_switched_off_elsewhere_is_switched_off_here():
    assert refusal(["--no-linear-lr"]).endswith("here it is --no-anneal-lr")
    assert refusal(["--no-norm-obs"]).endswith("here it is --no-normalize-observations")


@pytest.mark.parametrize("word", ["--devices=2", "--nproc-per-node=2", "--num-nodes=2", "--strategy=ddp"])
def test_a_launchers_flag_is_sent_to_the_launcher(word):
    assert "launcher's" in refusal([word])


def test_every_flag_that_a_hint_names_exists():
    own = {flag(name) for kind in SCRIPT_CONFIGS.values() for name in (each.name for each in dataclasses.fields(kind))}
    launcher = {
        entry.names.split()[0] for name in SCRIPT_CONFIGS for entry in train.launcher_parser(name).flag_entries()
    }
    of_evaluate = {entry.names.split()[0] for entry in evaluate.evaluate_parser().flag_entries()}
    assert set(same_names().values()) <= {name[2:].replace("-", "_") for name in own}
    for note in notes().values():
        for word in re.findall(r"(?<![\w-])--[\w-]+", note):
            assert {word, word.replace("--no-", "--")} & (own | launcher | of_evaluate), note


def test_a_name_of_ours_has_no_hint_and_another_one_has_one_place():
    """A flag that is added here later is no other program's any more."""
    own = {each.name for kind in SCRIPT_CONFIGS.values() for each in dataclasses.fields(kind)}
    assert not own & (set(same_names()) | set(notes()))
    assert not set(same_names()) & set(notes())


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--learning-rte", "did you mean --learning-rate?"),
        ("--zzzzzzzzzz", "see --help-all for the flags"),
    ],
)
def test_a_slip_names_the_nearest_flag(word, hint):
    assert flag_hint(word, [flag(each.name) for each in dataclasses.fields(Config)]).startswith(hint)


@pytest.mark.parametrize("word", ["--nonsense", "--no-nonsense", "--no-foo", "--banana", "--x", "--no-", "--reverse"])
def test_nothing_is_suggested_where_nothing_is_close(word):
    """Dashes and `no-` are in many flags, and make none of them close."""
    known = [name for each in dataclasses.fields(Config) for name in (flag(each.name), flag(f"no_{each.name}"))]
    assert flag_hint(word, known) == "see --help-all for the flags"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--no-capture-vdeo", "--no-capture-video"),
        ("--capture-vdeo", "--capture-video"),
        ("--no-aneal-lr", "--no-anneal-lr"),
        ("--sede", "--seed"),
        ("--trak", "--track"),
        ("--numenvs", "--num-envs"),
    ],
)
def test_a_slip_is_answered_with_the_flag_that_was_meant(word, meant):
    known = [name for each in dataclasses.fields(Config) for name in (flag(each.name), flag(f"no_{each.name}"))]
    assert flag_hint(word, known) == f"did you mean {meant}?"


@pytest.mark.parametrize("name", EDITS)
def test_what_takes_an_edit_is_answered_with_the_page_that_shows_it(name):
    assert '"Change the algorithm" in docs/architecture.md' in refusal([flag(name), "1"])


def test_that_page_has_such_a_heading():
    assert "\n## Change the algorithm\n" in (ROOT / "docs/architecture.md").read_text()


def test_so_is_a_value_that_an_edit_would_add():
    text = refusal(["--activation-function", "gelu"])
    assert text.startswith("--activation-function gelu: one of relu, tanh is expected; another one is an edit of ")
    assert '"Change the algorithm" in docs/architecture.md' in text


def test_all_names_of_another_program_are_answered_at_once():
    """In one line, in the order of the command line, each once; a flag of ours is left out."""
    words = ["--gamma", "0.98", "--n-steps=32", "--n-epochs", "20", "--clip-coef", "0.1", "--n_steps", "5", "--n-epoch"]
    assert refusal(words) == (
        "--n-steps: unknown flag; here it is --num-steps; --n-epochs: here it is --update-epochs; "
        "--n-epoch: " + flag_hint("--n-epoch", ["--update-epochs"])
    )
