"""Hints for flags that a command does not have: those that it has for the same thing, and slips."""

from __future__ import annotations

from collections.abc import Collection

from fabric_ppo.config import SCRIPT_CONFIGS
from fabric_ppo.config_names import nearest_name
from fabric_ppo.config_values import field_types
from fabric_ppo.process.errors import flag

_SAME = {
    "--episodes": "n_eval_episodes num_eval_episodes eval_episodes n_episodes num_episodes test_episodes n",
    "--step-limit": "test_step_limit max_steps max_episode_steps max_ep_len n_timesteps num_steps steps",
    "--video": "capture_video record_video record save_video video_folder video_dir",
    "--stochastic": "sample no_deterministic",
    "--render": "render_mode show watch human",
    "--info-keys": "info_keywords metrics",
    "--code-dir": "code_folder pythonpath module_dir path",
    "--json": "as_json to_json",
    "--out": "output output_file out_file save_path file filename o f",
    "--to": "format type",
    "--seeds": "n_seeds num_seeds",
    "--jobs": "n_jobs num_jobs workers num_workers n_workers j",
    "--log-dir": "log_folder logdir folder",
    "--smooth": "window smoothing smoothing_window rolling",
    "--metric": "metrics y y_axis key tag",
    "--x": "x_axis xaxis x_key",
    "--group-by": "group by groupby",
    "--size": "figsize fig_size",
    "--bands": "mean seeds average aggregate ci",
}
"""Flags of the commands: other names of the same thing."""
_NOTES = {
    "deterministic": "actions are the most probable ones anyway; --stochastic samples them",
    "no_stochastic": "actions are the most probable ones anyway; --stochastic samples them",
    "no_render headless": "nothing is shown without --render human",
    "load_best load_checkpoint load_last_checkpoint checkpoint best": "RUN_DIR takes a checkpoint, such as best.ckpt",
    "env env_id algo": "environment and agent are those of the run in RUN_DIR",
}
"""Other names, and what to do instead where RUN_DIR is played."""


def command_hint(word: str, known: Collection[str], help_text: str) -> str:
    """Return a hint for the error about a flag that a command does not have.

    Args:
        word: the flag, such as `--n-eval-episodes`.
        known: flags that the command has.
        help_text: where flags are listed, such as `fabric-ppo evaluate --help`.
    """
    name = word.lstrip("-").lower().replace("-", "_")
    for ours, others in _SAME.items():
        if ours in known and name in others.split():
            return f"here it is {ours}"
    for others, note in _NOTES.items():
        if "--step-limit" in known and name in others.split():
            return note
    if nearest := nearest_name(flag(name), known):
        return f"did you mean {nearest}?"
    if any(name in field_types(kind) for kind in SCRIPT_CONFIGS.values()):
        return "it is a flag of train"
    return f"see {help_text}"
