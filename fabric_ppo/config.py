"""Every flag of the three scripts: one frozen dataclass field each, whose docstring is its `--help`.

This module loads nothing heavy, so that `--help` and a wrong flag answer at once.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fabric_ppo.env_ids import ATARI, named_function, resolve_env_id, resolve_envpool_id
from fabric_ppo.errors import ConfigError, flag

_POSITIVE_COUNTS = (
    *("num_envs", "num_steps", "total_timesteps", "per_rank_batch_size", "update_epochs"),
    *("test_episodes", "eval_episodes", "keep_checkpoints", "recurrent_size"),
)
_POSITIVE = ("learning_rate", "adam_eps", "timeout", "env_timeout", "max_grad_norm", "clip_coef")
_UNIT_INTERVAL = ("gamma", "gae_lambda")
_NON_NEGATIVE = ("ent_coef", "vf_coef")
_AT_MOST: dict[str, float] = {
    **dict.fromkeys((*_POSITIVE, *_NON_NEGATIVE), 1e30),  # float32 holds it
    **dict.fromkeys(("num_envs", "num_steps", "test_episodes", "eval_episodes"), 2**30),
    **{"hidden_sizes": 2**16, "recurrent_size": 2**16, "num_threads": 2**12},
}
"""What no machine can do, and libraries answer with a crash."""
LEARNING_RATES = (1e-5, 1e-2)
"""Least and greatest that `--desired-kl` sets."""
LOG_STD = (-20.0, 2.0)
"""What the log standard deviation starts within, and where the network gives it stays within."""
ENCODERS = ("auto", "flatten", "nature", "impala", "small")
MAY_DIFFER = (
    *("total_timesteps", "stop_at_return", "checkpoint_every", "keep_checkpoints", "capture_video", "test_episodes"),
    *("profile", "env_backend", "env_timeout", "restart_envs", "timeout", "num_threads", "exp_name", "log_dir"),
)
"""Flags of a run that a resumed one may be given anew; `Config.resume` lists them for the user."""


@dataclass(frozen=True)
class Config:
    """The hyperparameters of a run. Building one validates it."""

    exp_name: str = "default"
    """Name of the experiment, part of the run folder's name."""
    seed: int = 42
    """Seed of every random draw: environments, actions, minibatches, initial weights."""
    torch_deterministic: bool = True
    """Use deterministic algorithms only (matters on GPUs)."""
    num_threads: int = 0
    """Threads of each rank, PyTorch's and EnvPool's; 0: the cores of the host over its ranks, but one for PyTorch where
    matrix products are small."""
    compile: bool = False
    """Have torch.compile translate the loss before training starts; needs a C++ compiler."""
    timeout: float = 300.0
    """Seconds after which a rank that does not answer ends the run."""

    env_id: str = "CartPole-v1"
    """Environment: an id that `gymnasium.make` takes, `module:Env-v0` included."""
    env_backend: Literal["sync", "async", "envpool"] = "sync"
    """Where environments run: in this process (sync), in a worker process each (async), in EnvPool's threads."""
    env_timeout: float = 60.0
    """Seconds that an async worker may take for one step or reset."""
    env_wrapper: str | None = None
    """Function `module:name` from environment to environment that each one goes through (not with envpool); several,
    the innermost first, with commas between them."""
    env_preset: str | None = None
    """atari: an Atari game with no-op starts, frame skip 4, 84 x 84 gray frames, four stacked, and for what is learnt
    rewards by their sign and a lost life as an end. Tests and logged returns are of full games and raw rewards."""
    action_bounds: Literal["clip", "rescale", "squash"] = "rescale"
    """How continuous actions meet their bounds: cut off there (clip), with -1 .. 1 stretched over the bounds first
    (rescale), or by way of tanh (squash)."""
    restart_envs: bool = False
    """Replace an async worker that died or hangs, rebuild its episode, and go on."""
    num_envs: int = 2
    """Environments per rank."""
    num_steps: int = 128
    """Steps per environment and rollout."""
    total_timesteps: int = 65536
    """Length of the training, in units of --timestep-unit."""
    timestep_unit: Literal["transition", "iteration"] = "transition"
    """Unit of --total-timesteps: transitions over all ranks, or calls of a rank's vector environment."""
    stop_at_return: float | None = None
    """End when the mean return of the last 100 training episodes reaches this."""

    share_data: bool = False
    """Gather the data of all ranks; each trains on its part of every minibatch."""
    per_rank_batch_size: int = 64
    """Rows of a minibatch on each rank."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    adam_eps: float = 1e-5
    """Adam's epsilon."""
    anneal_lr: bool = True
    """Lower the learning rate linearly to zero over the run."""
    gamma: float = 0.99
    """Discount factor."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    update_epochs: int = 10
    """Passes over a rollout's data in each update."""
    normalize_advantages: bool = True
    """Normalise advantages once per update, over the transitions of all ranks."""
    normalize_observations: bool = False
    """Normalise Box observations by their running mean and deviation over all ranks; of nested ones the Box parts, but
    for images that go through a network."""
    normalize_rewards: bool = False
    """Divide rewards by the running deviation of discounted returns over all ranks."""
    target_kl: float | None = None
    """End an update's epochs early, on all ranks alike, once the approximate KL divergence of the policy from the one
    that collected, mean over an epoch, exceeds 1.5 times this."""
    desired_kl: float | None = None
    """Have the learning rate follow the approximate KL divergence, mean over an update and all ranks: after one above
    twice this it is divided by 1.5, after one below half of it multiplied, within 1e-5 .. 1e-2. Needs
    --no-anneal-lr."""
    clip_coef: float = 0.2
    """Clipping range of the surrogate objective, and of the value with --clip-vloss."""
    anneal_clip_coef: bool = False
    """Lower --clip-coef linearly to zero over the run."""
    clip_vloss: bool = False
    """Clip the value loss around the value at collection time."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    anneal_ent_coef: bool = False
    """Lower --ent-coef linearly to zero over the run."""
    vf_coef: float = 0.5
    """Weight of the value loss, which carries a factor 1/2 of its own."""
    max_grad_norm: float = 0.5
    """Largest norm of the gradient; longer ones are scaled down."""

    activation_function: Literal["relu", "tanh"] = "relu"
    """Activation between the layers of the networks."""
    encoder: str = "auto"
    """Network that policy and value share for images of bytes: nature, impala, small (a third of nature's work),
    flatten (none), or auto, which is nature from 36 x 36 on. Or a class of your own for all Box observations,
    `module:Class`."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, of policy and value network alike."""
    shared_trunk: bool = False
    """Let policy and value share the hidden layers; each then has one linear layer of its own."""
    layer_norm: bool = False
    """Normalise each hidden layer before its activation."""
    recurrent: Literal["none", "lstm", "gru"] = "none"
    """Let the agent remember: a recurrent layer before policy and value, after what they share."""
    recurrent_size: int = 64
    """Width of the recurrent layer."""
    sequence_length: int = 16
    """Steps through which gradients flow back in time with --recurrent; a rollout is cut into sequences of so many."""
    log_std_init: float = 0.0
    """Log standard deviation that continuous actions start with."""
    state_dependent_std: bool = False
    """Have the policy network give the log standard deviation of continuous actions too."""
    log_std_min: float | None = None
    """Bound below the log standard deviation of continuous actions. None: -20 with --state-dependent-std, else no
    bound."""
    log_std_max: float | None = None
    """Bound it above. None: 2 with --state-dependent-std, else no bound."""
    init_from: str | None = None
    """Run folder or checkpoint whose policy the training starts with; every rank with environments reads it."""
    ortho_init: bool = False
    """Initialise weights orthogonally (gains sqrt(2), 0.01 for the policy head, 1 for the value head), but for an
    encoder of your own."""

    capture_video: bool = False
    """Record environment 0 of rank 0 into train_videos/ (not with envpool), one test episode into test_videos/."""
    eval_every: int = 0
    """Updates between evaluations, each of --eval-episodes greedy episodes in environments of their own; best.ckpt is
    then the best by these. Other ranks wait for it, no longer than --timeout. 0: none."""
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    test_episodes: int = 10
    """Greedy episodes played at the end."""
    run_dir: str | None = None
    """Folder of this run; by default a new one in --log-dir."""
    profile: bool = False
    """Tell where the time went, in a table at the end and in a trace for Chrome's or Perfetto's viewer."""
    resume: bool = False
    """Go on with the newest checkpoint in --run-dir, or start there if it has none. Flags must be the run's own, but
    for those that leave the result as it is: --total-timesteps (upward), --stop-at-return, --checkpoint-every,
    --keep-checkpoints, --capture-video, --test-episodes, --env-backend (sync, async), --env-timeout, --restart-envs,
    --timeout, --num-threads, --profile, --exp-name, --log-dir."""
    checkpoint_every: int = 0
    """Updates between checkpoints; 0: about one a minute. There is always one at the end."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints to keep, besides the best."""
    log_dir: str = "logs"
    """Where run folders are made."""
    config: str | None = None
    """YAML file of flags to start from, such as a run folder's config.yaml; flags override it."""

    def __post_init__(self) -> None:
        """Raise a ConfigError for the first value that cannot work."""
        _check_types(self)
        for name in _POSITIVE_COUNTS:
            _require(self, name, getattr(self, name) >= 1, "a whole number from 1 up")
        for name in _POSITIVE:
            _require(self, name, 0 < getattr(self, name) < math.inf, "a number above 0")
        for name in _UNIT_INTERVAL:
            _require(self, name, 0 <= getattr(self, name) <= 1, "a number from 0 to 1")
        for name in _NON_NEGATIVE:
            _require(self, name, 0 <= getattr(self, name) < math.inf, "a number from 0 up")
        for name, most in _AT_MOST.items():
            value = getattr(self, name)
            _require(self, name, max(value if isinstance(value, tuple) else (value,)) <= most, f"at most {most:g}")
        _require(self, "seed", 0 <= self.seed < 2**32, "a whole number from 0 to 4294967295")
        _require(self, "num_threads", self.num_threads >= 0, "a whole number from 0 up")
        _require(self, "hidden_sizes", all(n >= 1 for n in self.hidden_sizes), "whole numbers from 1 up")
        for name in ("checkpoint_every", "eval_every"):
            _require(self, name, getattr(self, name) >= 0, "a whole number from 0 up")
        _require(self, "run_dir", self.run_dir != "", "a folder")
        if self.resume and self.run_dir is None:
            raise ConfigError("--resume: --run-dir is needed too, the folder of the run to go on with")
        if self.restart_envs and self.env_backend != "async":
            raise ConfigError("--restart-envs: --env-backend async is needed too, whose workers can be replaced")
        if self.recurrent != "none":
            self._check_sequences()
        kl = self.target_kl
        _require(self, "target_kl", kl is None or 0 < kl < math.inf, "a number above 0, or None")
        self._check_desired_kl()
        if self.env_backend == "envpool":
            _require(self, "num_steps", self.num_steps >= 2, "with EnvPool a whole number from 2 up")
        stop = self.stop_at_return
        _require(self, "stop_at_return", stop is None or math.isfinite(stop), "a finite number, or None")
        _require(self, "exp_name", re.fullmatch(r"[\w.+-]+", self.exp_name) is not None, "letters, digits and . + - _")
        if self.compile:
            if self.anneal_clip_coef or self.anneal_ent_coef:
                raise ConfigError("--compile: cannot be had with --anneal-clip-coef or --anneal-ent-coef")
            require_compiler()
        self._check_log_std()
        _require(
            self, "encoder", self.encoder in ENCODERS or ":" in self.encoder, f"{', '.join(ENCODERS)} or module:Class"
        )
        if ":" in self.encoder:
            named_function(self.encoder, "encoder")
        if self.env_wrapper is not None:
            if self.env_backend == "envpool":
                raise ConfigError("--env-wrapper: --env-backend sync or async is needed, EnvPool cannot be wrapped")
            for each in self.env_wrapper.split(","):
                named_function(each, "env_wrapper")
        _require(self, "env_preset", self.env_preset in (None, ATARI), ATARI)
        if self.env_preset and self.env_wrapper:
            raise ConfigError("--env-preset: cannot be had with --env-wrapper, one of the two is expected")
        resolve = resolve_envpool_id if self.env_backend == "envpool" else resolve_env_id
        object.__setattr__(self, "env_id", resolve(self.env_id, self.env_preset or ""))

    def _check_sequences(self) -> None:
        """Raise a ConfigError where rollouts or minibatches cannot be cut into whole sequences."""
        length = self.sequence_length
        _require(self, "sequence_length", length >= 1, "a whole number from 1 up")
        if self.num_steps % length:
            raise ConfigError(f"--sequence-length {length}: a divisor of --num-steps {self.num_steps} is expected")
        _require(
            self,
            "per_rank_batch_size",
            self.per_rank_batch_size % length == 0,
            f"a multiple of --sequence-length {length}",
        )
        if self.compile:
            raise ConfigError("--compile: cannot be had with --recurrent")

    @property
    def overlaps(self) -> bool:
        """Whether rollouts are collected while updates are made."""
        return False

    @property
    def rows_together(self) -> int:
        """Rows that minibatches keep together: a sequence of a recurrent agent's, else one."""
        return 1 if self.recurrent == "none" else self.sequence_length

    def _check_desired_kl(self) -> None:
        kl = self.desired_kl
        _require(self, "desired_kl", kl is None or 0 < kl < math.inf, "a number above 0, or None")
        if kl is None:
            return
        if self.anneal_lr:
            raise ConfigError(f"--desired-kl {kl:g}: --no-anneal-lr is needed too, the learning rate follows the KL")
        least, most = LEARNING_RATES
        in_range = least <= self.learning_rate <= most
        _require(self, "learning_rate", in_range, f"with --desired-kl a number from {least:g} to {most:g}")

    def _check_log_std(self) -> None:
        least, most = LOG_STD
        for name in ("log_std_min", "log_std_max"):
            value = getattr(self, name)
            _require(
                self, name, value is None or least <= value <= most, f"a number from {least:g} to {most:g}, or None"
            )
        least = least if self.log_std_min is None else self.log_std_min
        most = most if self.log_std_max is None else self.log_std_max
        _require(self, "log_std_max", least <= most, "at least --log-std-min")
        _require(self, "log_std_init", least <= self.log_std_init <= most, f"a number from {least:g} to {most:g}")

    def num_updates(self, num_ranks: int) -> int:
        """Updates of a run whose `num_ranks` ranks have environments, rounded down.

        Unit `transition` counts as the field does, total / (num_steps * num_envs * ranks); `iteration` is
        total / num_steps, where a timestep is one call of the vectorised environment on each rank.

        Raises:
            ConfigError: not even one update.
        """
        if self.timestep_unit == "iteration":
            per_update, formula = self.num_steps, f"num-steps {self.num_steps}"
        else:
            per_update = self.num_steps * self.num_envs * num_ranks
            formula = f"num-steps {self.num_steps} x num-envs {self.num_envs} x {num_ranks} ranks"
        if self.total_timesteps < per_update:
            raise ConfigError(
                f"--total-timesteps {self.total_timesteps}: at least {per_update} ({formula}), one update"
            )
        return self.total_timesteps // per_update

    def check_launch(self, world_size: int, on_this_host: int) -> None:
        """Raise a ConfigError where these flags do not fit `world_size` processes, so many of them on this host."""
        self.num_updates(world_size)

    def to_dict(self) -> dict[str, Any]:
        """The flags as plain values for config.yaml, without those that only say where this run lies."""
        values = dataclasses.asdict(self)
        for name in ("config", "run_dir", "resume"):
            del values[name]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True)
class TorchConfig(Config):
    """The flags of `train_torch.py`."""

    cuda: bool = False
    """Train on GPUs, one per rank, with nccl."""

    def __post_init__(self) -> None:
        """See `Config`; `--cuda` needs a GPU."""
        super().__post_init__()
        if self.cuda:
            require_cuda(1)

    def check_launch(self, world_size: int, on_this_host: int) -> None:
        """See `Config`; each rank of this host needs a GPU with `--cuda`."""
        super().check_launch(world_size, on_this_host)
        if self.cuda:
            require_cuda(on_this_host)


def require_compiler() -> None:
    """Raise a ConfigError where torch.compile would not find a C++ compiler or Python's headers."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(f"--compile: a C++ compiler is needed, {compiler} is not found; CXX names another one")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise ConfigError("--compile: Python's headers are needed (package python3-dev or similar)")


def require_cuda(num_devices: int) -> None:
    """Raise a ConfigError where this host has fewer CUDA devices: never train on the CPU instead."""
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < num_devices:
        raise ConfigError(f"--cuda: {num_devices} CUDA devices are needed here, {found} found")


def require_precision(precision: str | None) -> None:
    """Raise a ConfigError for a `--precision` of `fabric run` with which this program does not learn.

    That of 16 bits leaves gradient steps out when they overflow, and weights of 16 bits do not move by Adam's steps.
    """
    if precision not in (None, "32", "32-true", "64", "64-true", "bf16", "bf16-mixed"):
        raise ConfigError(f"--precision {precision}: 32-true, 64-true or bf16-mixed is expected")


@dataclass(frozen=True)
class DecoupledConfig(Config):
    """The flags of `train_fabric_decoupled.py`."""

    cuda: bool = False
    """Put the trainers on GPUs."""
    player_on_gpu: bool = False
    """Put the player on a GPU too; with --cuda."""
    overlap: bool = False
    """Collect the next rollout while the trainers optimise: its policy is one update old."""

    def __post_init__(self) -> None:
        """See `Config`."""
        super().__post_init__()
        if self.player_on_gpu and not self.cuda:
            raise ConfigError("--player-on-gpu: --cuda is needed too, which puts the trainers on GPUs")

    @property
    def overlaps(self) -> bool:
        """With `--overlap`."""
        return self.overlap

    def check_launch(self, world_size: int, on_this_host: int) -> None:
        """See `Config`: one process is the player, and each other one trains on at least one row."""
        if world_size < 2:
            raise ConfigError(
                f"train_fabric_decoupled.py with {world_size} process: a player and at least one trainer are needed, "
                "as in fabric run --devices=2 train_fabric_decoupled.py"
            )
        self.num_updates(1)
        rows, unit = (
            self.num_steps * self.num_envs // self.rows_together,
            "row" if self.recurrent == "none" else "sequence",
        )
        if rows < world_size - 1:
            needed = f"at least {world_size - 1}, a {unit} for each trainer, are needed"
            raise ConfigError(f"--num-steps {self.num_steps} --num-envs {self.num_envs}: {rows} {unit}s; {needed}")
        if self.cuda and on_this_host < world_size:
            raise ConfigError("--cuda: train_fabric_decoupled.py places its ranks on the GPUs of one host")
        if self.cuda:
            require_cuda(world_size if self.player_on_gpu else world_size - 1)


SCRIPT_CONFIGS: dict[str, type[Config]] = {"torch": TorchConfig, "fabric": Config, "decoupled": DecoupledConfig}


def _require(config: Config, name: str, holds: bool, accepted: str) -> None:
    if not holds:
        raise ConfigError(f"{flag(name)} {shown(getattr(config, name))}".rstrip() + f": {accepted} is expected")


def shown(value: Any) -> str:
    """A value in an error; of what a YAML file nests, which can be endless, only that it is nested."""
    parts = value if isinstance(value, tuple) else (value,)
    nested = (list, tuple, dict, set)
    return " ".join(f"({type(part).__name__})" if isinstance(part, nested) else str(part) for part in parts)


def field_types(config_type: type[Config]) -> dict[str, Any]:
    """Field name -> its annotation, as a type."""
    return get_type_hints(config_type)


def accepted_values(kind: Any) -> str:
    """In words, what a field of this type takes."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if kind == tuple[int, ...]:
        return "one or more whole numbers"
    alternatives = [part for part in get_args(kind) if part is not type(None)] or [kind]
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[alternatives[0]]


def has_type(value: Any, kind: Any) -> bool:
    """Whether `value` is of the field type `kind`; bool is no number here."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind == tuple[int, ...]:
        return isinstance(value, tuple) and len(value) > 0 and all(type(item) is int for item in value)
    return type(value) in (get_args(kind) or (kind,))


def _check_types(config: Config) -> None:
    """Hold every value against its field's annotation: a YAML file or a caller can hand in anything."""
    for name, kind in field_types(type(config)).items():
        value = getattr(config, name)
        if type(value) is list:
            object.__setattr__(config, name, value := tuple(value))
        elif type(value) is int and (kind is float or float in get_args(kind)):
            object.__setattr__(config, name, value := float(value))
        _require(config, name, has_type(value, kind), accepted_values(kind))
