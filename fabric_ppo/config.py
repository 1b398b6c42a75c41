"""Flags of the three scripts: each is a field of a dataclass, whose docstring is its `--help`.

Building a Config checks types and values, and does nothing else. What takes an import or a look at
the machine is checked by `fabric_ppo.run.resolve`, before anything starts.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from fabric_ppo.process.errors import ConfigError, flag

LEARNING_RATES = (1e-5, 1e-2)
"""Least and greatest learning rate that `--desired-kl` sets."""
LOG_STD = (-20.0, 2.0)
"""Range of the initial log standard deviation, and by default of a network's output with
`--state-dependent-std`."""
ATARI = "atari"
"""Value of `--env-preset`; an EnvSpec has it in the place of a wrapper."""
ENCODERS = ("auto", "flatten", "nature", "impala", "small")
"""Built-in values of `--encoder`."""
TEST_STEP_LIMIT = 108_000
"""Default of `--test-step-limit`: no limit that Gymnasium registers is higher."""
TRACKERS = ("tensorboard", "json_lines")
"""Built-in values of `--trackers`."""


MAY_DIFFER = (
    *("total_timesteps", "stop_at_return", "checkpoint_every", "keep_checkpoints"),
    *("capture_video", "test_episodes", "test_step_limit", "profile", "quiet", "trackers", "callbacks"),
    *("env_backend", "env_timeout", "env_start_method", "restart_envs", "timeout", "num_threads"),
    *("exp_name", "init_from"),
)
"""Flags that may have other values in a resumed run; the help of `--resume` lists them."""
_NOT_OF_THE_RESULT = ("config", "run_dir", "log_dir", "resume")
"""Flags that are not in config.yaml: the place of a run's folder, and how it was started."""


@dataclass(frozen=True)
class Config:
    """Hyperparameters of a run. Building one checks types and values."""

    script: ClassVar[str] = "fabric"
    """Name of the script in `logs/<script>_logs`, `summary.json` and `train_<script>.py`."""

    exp_name: str = "default"
    """Name of the experiment, part of the run folder's name."""
    seed: int = 42
    """Seed of every random draw: environments, actions, minibatches, initial weights."""
    torch_deterministic: bool = True
    """Use deterministic algorithms only (matters on GPUs)."""
    num_threads: int = 0
    """Threads of each rank, PyTorch's and EnvPool's; 0: the cores of the host over its ranks, but
    one for PyTorch where matrix products are small."""
    compile: bool = False
    """Have torch.compile translate the loss before training starts; needs a C++ compiler."""
    timeout: float = 300.0
    """Seconds after which a rank that does not answer ends the run."""

    env_id: str = "CartPole-v1"
    """Environment: an id that `gymnasium.make` takes, `module:Env-v0` included."""
    env_backend: Literal["sync", "async", "envpool"] = "sync"
    """Backend of the environments: this process (sync), a worker process each (async), EnvPool's
    threads."""
    env_timeout: float = 60.0
    """Seconds that an async worker may take for one step or reset."""
    env_start_method: Literal["fork", "forkserver", "spawn"] | None = None
    """How async workers start; None: fork on Linux, else spawn. Threads do not survive a fork."""
    env_wrapper: str | None = None
    """Function `module:name` from environment to environment that each one goes through (not with
    envpool); several, the innermost first, with commas between them."""
    env_preset: str | None = None
    """atari: an Atari game with no-op starts, frame skip 4, 84 x 84 gray frames, four stacked, and
    for what is learnt rewards by their sign and a lost life as an end. Tests and logged returns are
    of full games and raw rewards."""
    obs_keys: str | None = None
    """Parts of a Dict observation that the agent takes, such as image,direction; a part of a nested
    Dict as outer.inner. None: all. An action_mask is used in any case."""
    action_bounds: Literal["clip", "rescale", "squash"] = "rescale"
    """Mapping of continuous actions into their bounds: cut off there (clip), with -1 .. 1 stretched
    over the bounds first (rescale), or by way of tanh (squash)."""
    restart_envs: bool = False
    """Replace an async worker that died or hangs, rebuild its episode, and go on."""
    num_envs: int = 2
    """Environments per rank."""
    num_steps: int = 128
    """Steps per environment and rollout."""
    total_timesteps: int = 65536
    """Length of the training, in units of --timestep-unit."""
    timestep_unit: Literal["transition", "iteration"] = "transition"
    """Unit of --total-timesteps: transitions over all ranks, or calls of a rank's vector
    environment."""
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
    """Normalise Box observations by their running mean and deviation over all ranks; of nested ones
    the Box parts, but for images that go through a network."""
    normalize_rewards: bool = False
    """Divide rewards by the running deviation of discounted returns over all ranks."""
    target_kl: float | None = None
    """End an update's epochs early, on all ranks alike, once the approximate KL divergence of the
    policy from the one that collected, mean over an epoch, exceeds 1.5 times this."""
    desired_kl: float | None = None
    """Have the learning rate follow the approximate KL divergence, mean over an update and all
    ranks: after one above twice this it is divided by 1.5, after one below half of it multiplied,
    within 1e-5 .. 1e-2. Needs --no-anneal-lr."""
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
    """Network that policy and value share for images of bytes: nature, impala, small (a third of
    nature's work), flatten (none), or auto, which is nature from 36 x 36 on. Or a class of your own
    for all Box observations, `module:Class`."""
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
    """Steps through which gradients flow back in time with --recurrent; a rollout is cut into
    sequences of so many."""
    log_std_init: float = 0.0
    """Log standard deviation that continuous actions start with."""
    state_dependent_std: bool = False
    """Have the policy network give the log standard deviation of continuous actions too."""
    log_std_min: float | None = None
    """Bound below the log standard deviation of continuous actions. None: -20 with
    --state-dependent-std, else no bound."""
    log_std_max: float | None = None
    """Bound above it. None: 2 with --state-dependent-std, else no bound."""
    init_from: str | None = None
    """Run folder or checkpoint whose policy the training starts with; every rank with environments
    reads it."""
    ortho_init: bool = False
    """Initialise weights orthogonally (gains sqrt(2), 0.01 for the policy head, 1 for the value
    head), but for an encoder of your own."""

    capture_video: bool = False
    """Record environment 0 of rank 0 into train_videos/ (not with envpool), one test episode into
    test_videos/."""
    eval_every: int = 0
    """Updates between evaluations, each of --eval-episodes greedy episodes in environments of their
    own; best.ckpt is then the best by these. Other ranks wait for it, no longer than --timeout.
    0: none."""
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    test_episodes: int = 10
    """Greedy episodes played at the end; 0: no test."""
    test_step_limit: int = TEST_STEP_LIMIT
    """Steps after which an episode of a test or an evaluation is cut off and counted as such."""
    trackers: str = "tensorboard,json_lines"
    """Where metrics go, with commas: tensorboard, json_lines, or a tracker of your own,
    module:Name."""
    callbacks: str | None = None
    """Callbacks of your own, module:Name, with commas between them."""
    quiet: bool = False
    """Print nothing but warnings and errors."""
    profile: bool = False
    """Print where the time went, in a table at the end; write a trace for Chrome's or Perfetto's
    viewer."""
    run_dir: str | None = None
    """Folder of this run; by default a new one in --log-dir."""
    resume: bool = False
    """Go on with the newest checkpoint in --run-dir, or start there if it has none. Flags must be
    the run's own, but for those that leave the result as it is: --total-timesteps (upward),
    --stop-at-return, --checkpoint-every, --keep-checkpoints, --capture-video, --test-episodes,
    --test-step-limit, --env-backend (sync, async), --env-timeout, --env-start-method,
    --restart-envs, --timeout, --num-threads, --profile, --quiet, --trackers, --callbacks,
    --exp-name, --init-from."""
    checkpoint_every: int = 0
    """Updates between checkpoints; 0: about one a minute. There is always one at the end."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints to keep, besides the best."""
    log_dir: str = "logs"
    """Folder in which run folders are made."""
    config: str | None = None
    """YAML file of flags to start from, such as a run folder's config.yaml, or a preset's name, see
    `fabric-ppo presets` (a file of that name comes first); flags override it."""

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ConfigError: a value cannot work; names the first such flag.
        """
        _check_types(self)
        _check_ranges(self)
        _check_names(self)
        _check_combinations(self)
        _check_sequences(self)
        _check_learning_rate(self)
        _check_log_std(self)

    @property
    def overlaps(self) -> bool:
        """True if rollouts are collected while updates are made."""
        return False

    @property
    def effective_sequence_length(self) -> int:
        """Rows that minibatches keep together: --sequence-length with --recurrent, else 1."""
        return 1 if self.recurrent == "none" else self.sequence_length

    def num_updates(self, num_ranks: int) -> int:
        """Return the number of updates of a run, rounded down.

        With the unit `transition` it is total / (num_steps * num_envs * ranks), as is usual; with
        `iteration` it is total / num_steps, where a timestep is one call of the vectorised
        environment on each rank.

        Args:
            num_ranks: number of ranks with environments.

        Raises:
            ConfigError: there is not even one update.
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
        """Check that the flags fit `world_size` processes, `on_this_host` of them on this host.

        Raises:
            ConfigError: they do not fit.
        """
        self.num_updates(world_size)

    def num_cuda_devices(self, world_size: int, on_this_host: int) -> int:
        """Return the number of CUDA devices that the script takes on this host with `--cuda`."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Return the flags in config.yaml, field name -> value of a type that YAML has.

        Equal configurations have equal values, also where an int stands for a float.
        """
        kinds = field_types(type(self))
        return {
            name: _plain(getattr(self, name), kind) for name, kind in kinds.items() if name not in _NOT_OF_THE_RESULT
        }


@dataclass(frozen=True)
class TorchConfig(Config):
    """Flags of `train_torch.py`."""

    script: ClassVar[str] = "torch"

    cuda: bool = False
    """Train on GPUs, one per rank, with nccl."""

    def num_cuda_devices(self, world_size: int, on_this_host: int) -> int:
        """See `Config`: one for each rank."""
        return on_this_host if self.cuda else 0


@dataclass(frozen=True)
class DecoupledConfig(Config):
    """Flags of `train_fabric_decoupled.py`."""

    script: ClassVar[str] = "fabric_decoupled"

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
        """True with `--overlap`."""
        return self.overlap

    def check_launch(self, world_size: int, on_this_host: int) -> None:
        """See `Config`: one process is the player, each other one trains on at least one row."""
        script = script_file(type(self))
        if world_size < 2:
            raise ConfigError(
                f"{script} with {world_size} process: a player and at least one trainer are needed, "
                f"as in fabric run --devices=2 {script}"
            )
        self.num_updates(1)
        count = self.num_steps * self.num_envs // self.effective_sequence_length
        unit = "row" if self.recurrent == "none" else "sequence"
        if count < world_size - 1:
            needed = f"at least {world_size - 1}, a {unit} for each trainer, are needed"
            raise ConfigError(f"--num-steps {self.num_steps} --num-envs {self.num_envs}: {count} {unit}s; {needed}")
        if self.cuda and on_this_host < world_size:
            raise ConfigError(f"--cuda: {script} places its ranks on the GPUs of one host")

    def num_cuda_devices(self, world_size: int, on_this_host: int) -> int:
        """See `Config`: one for each trainer, and one for the player with `--player-on-gpu`."""
        num_trainers = world_size - 1
        return num_trainers + self.player_on_gpu if self.cuda else 0


SCRIPT_CONFIGS: dict[str, type[Config]] = {"torch": TorchConfig, "fabric": Config, "decoupled": DecoupledConfig}
"""Names of the scripts on the command line of `python -m fabric_ppo`, and their flags."""


def script_file(config_type: type[Config]) -> str:
    """Return the file of the script that takes these flags.

    >>> script_file(DecoupledConfig)
    'train_fabric_decoupled.py'
    """
    return f"train_{config_type.script}.py"


def field_types(config_type: type[Config]) -> dict[str, Any]:
    """Return field name -> type of its annotation."""
    kinds = get_type_hints(config_type)
    return {field.name: kinds[field.name] for field in dataclasses.fields(config_type)}


def accepted_values(kind: Any) -> str:
    """Return a description of the values that a field of this type takes, for errors."""
    if choices := _choices(kind):
        others = ", or None" if type(None) in get_args(kind) else ""
        return "one of " + ", ".join(choices) + others
    if kind == tuple[int, ...]:
        return "one or more whole numbers"
    alternatives = [part for part in get_args(kind) if part is not type(None)] or [kind]
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[alternatives[0]]


def has_type(value: Any, kind: Any) -> bool:
    """Return True if a field of type `kind` takes `value`.

    A list may stand for a tuple and an int for a float; a bool is no number.
    """
    if choices := _choices(kind):
        return value in choices or (value is None and type(None) in get_args(kind))
    if kind == tuple[int, ...]:
        return isinstance(value, (tuple, list)) and len(value) > 0 and all(type(item) is int for item in value)
    if type(value) is int and takes_float(kind):
        return abs(value) < 2**1023  # no float is larger
    return type(value) in (get_args(kind) or (kind,))


def _choices(kind: Any) -> tuple[str, ...]:
    """Return the values of a Literal, also of one that may be None instead; of others nothing."""
    literals = [part for part in (kind, *get_args(kind)) if get_origin(part) is Literal]
    return get_args(literals[0]) if literals else ()


def takes_float(kind: Any) -> bool:
    """Return True if a field of type `kind` takes floats."""
    return kind is float or float in get_args(kind)


def format_value(value: Any) -> str:
    """Return a value as text for an error; of a nested part only its type."""
    # YAML can nest values endlessly
    parts = value if isinstance(value, (tuple, list)) else (value,)
    nested = (list, tuple, dict, set)
    return " ".join(f"({type(part).__name__})" if isinstance(part, nested) else str(part) for part in parts)


def _plain(value: Any, kind: Any) -> Any:
    """Return a field's value for YAML: a tuple as a list, an int for a float as a float."""
    if isinstance(value, tuple):
        return list(value)
    return float(value) if type(value) is int and takes_float(kind) else value


def _require(config: Config, name: str, holds: bool, accepted: str) -> None:
    """Raise a ConfigError about the value of field `name` unless `holds`."""
    if not holds:
        value = format_value(getattr(config, name))
        raise ConfigError(f"{flag(name)} {value}".rstrip() + f": {accepted} is expected")


_Rule = tuple[Callable[[Any], bool], str]
"""Test of a field's value, and a description of the values that pass it."""


_COUNT: _Rule = (lambda value: value >= 1, "a whole number from 1 up")
_COUNT_OR_ZERO: _Rule = (lambda value: value >= 0, "a whole number from 0 up")
_POSITIVE: _Rule = (lambda value: 0 < value < math.inf, "a number above 0")
_NON_NEGATIVE: _Rule = (lambda value: 0 <= value < math.inf, "a number from 0 up")
_UNIT_INTERVAL: _Rule = (lambda value: 0 <= value <= 1, "a number from 0 to 1")
_LOG_STD: _Rule = (
    lambda value: LOG_STD[0] <= value <= LOG_STD[1],
    f"a number from {LOG_STD[0]:g} to {LOG_STD[1]:g}, or None",
)


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("num_envs", "num_steps", "total_timesteps", "per_rank_batch_size"), _COUNT),
    **dict.fromkeys(("update_epochs", "test_step_limit", "eval_episodes"), _COUNT),
    **dict.fromkeys(("keep_checkpoints", "recurrent_size"), _COUNT),
    **dict.fromkeys(("learning_rate", "adam_eps", "timeout", "env_timeout"), _POSITIVE),
    **dict.fromkeys(("max_grad_norm", "clip_coef"), _POSITIVE),
    **dict.fromkeys(("gamma", "gae_lambda"), _UNIT_INTERVAL),
    **dict.fromkeys(("ent_coef", "vf_coef"), _NON_NEGATIVE),
    **dict.fromkeys(("num_threads", "checkpoint_every", "eval_every", "test_episodes"), _COUNT_OR_ZERO),
    **dict.fromkeys(("target_kl", "desired_kl"), (_POSITIVE[0], "a number above 0, or None")),
    **dict.fromkeys(("log_std_min", "log_std_max"), _LOG_STD),
    "seed": (lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295"),
    "hidden_sizes": (lambda widths: all(width >= 1 for width in widths), "whole numbers from 1 up"),
    "stop_at_return": (math.isfinite, "a finite number, or None"),
    "run_dir": (lambda path: path != "", "a folder"),
    "exp_name": (lambda name: re.fullmatch(r"[\w.+-]+", name) is not None, "letters, digits and . + - _"),
    "encoder": (lambda name: name in ENCODERS or ":" in name, f"{', '.join(ENCODERS)} or module:Class"),
    "env_preset": (lambda name: name == ATARI, ATARI),
    "obs_keys": (lambda keys: all(keys.split(",")), "a list such as image,direction"),
}
"""Rules for the values of fields; None is not tested."""


# float32 overflows beyond 3e38
_AT_MOST: dict[str, float] = {
    **dict.fromkeys(("learning_rate", "adam_eps", "timeout", "env_timeout"), 1e30),
    **dict.fromkeys(("max_grad_norm", "clip_coef", "ent_coef", "vf_coef"), 1e30),
    **dict.fromkeys(("num_envs", "num_steps", "test_episodes", "eval_episodes"), 2**30),
    **{"hidden_sizes": 2**16, "recurrent_size": 2**16, "num_threads": 2**12},
}
"""Upper bounds, beyond which libraries crash or no machine has the memory."""


_NAMES: dict[str, tuple[tuple[str, ...], str]] = {
    "env_wrapper": ((), "module:name"),
    "trackers": (TRACKERS, f"{', '.join(TRACKERS)} or module:Name"),
    "callbacks": ((), "module:Name"),
}
"""Fields that hold names with commas between them: built-in names, and a description of others."""


def _check_types(config: Config) -> None:
    """Check every value against its annotation."""
    # dataclasses do not: a YAML file or a caller may pass anything
    for name, kind in field_types(type(config)).items():
        _require(config, name, has_type(getattr(config, name), kind), accepted_values(kind))


def _check_ranges(config: Config) -> None:
    for name, (passes, accepted) in _RULES.items():
        value = getattr(config, name)
        _require(config, name, value is None or passes(value), accepted)
    for name, most in _AT_MOST.items():
        value = getattr(config, name)
        largest = max(value) if isinstance(value, (tuple, list)) else value
        _require(config, name, largest <= most, f"at most {most:g}")


def _check_names(config: Config) -> None:
    """Check the form of names of the user's own parts; `run.resolve` imports them."""
    for name, (known, accepted) in _NAMES.items():
        value = getattr(config, name)
        for part in [] if value is None else value.split(","):
            module, _, attribute = part.partition(":")
            if part not in known and not (module and attribute):
                raise ConfigError(f"{flag(name)} {part or value}: {accepted} is expected")


def _check_combinations(config: Config) -> None:
    """Check flags that need or exclude each other."""
    if config.resume and config.run_dir is None:
        raise ConfigError("--resume: --run-dir is needed too, the folder of the run to go on with")
    if config.restart_envs and config.env_backend != "async":
        raise ConfigError("--restart-envs: --env-backend async is needed too, whose workers can be replaced")
    if config.env_start_method and config.env_backend != "async":
        raise ConfigError(f"--env-start-method {config.env_start_method}: --env-backend async is needed too")
    if config.env_backend == "envpool":
        _require(config, "num_steps", config.num_steps >= 2, "with EnvPool a whole number from 2 up")
        if config.env_wrapper is not None:
            raise ConfigError("--env-wrapper: --env-backend sync or async is needed, EnvPool cannot be wrapped")
    if config.env_preset and config.env_wrapper:
        raise ConfigError("--env-preset: cannot be had with --env-wrapper, one of the two is expected")
    if config.compile and (config.anneal_clip_coef or config.anneal_ent_coef):
        raise ConfigError("--compile: cannot be had with --anneal-clip-coef or --anneal-ent-coef")


def _check_sequences(config: Config) -> None:
    """Check that rollouts and minibatches can be cut into whole sequences, with --recurrent."""
    if config.recurrent == "none":
        return
    length, rows = config.sequence_length, config.per_rank_batch_size
    _require(config, "sequence_length", length >= 1, "a whole number from 1 up")
    if config.num_steps % length:
        raise ConfigError(f"--sequence-length {length}: a divisor of --num-steps {config.num_steps} is expected")
    _require(config, "per_rank_batch_size", rows % length == 0, f"a multiple of --sequence-length {length}")
    if config.compile:
        raise ConfigError("--compile: cannot be had with --recurrent")


def _check_learning_rate(config: Config) -> None:
    """Check what --desired-kl needs."""
    kl = config.desired_kl
    if kl is None:
        return
    if config.anneal_lr:
        raise ConfigError(f"--desired-kl {kl:g}: --no-anneal-lr is needed too, the learning rate follows the KL")
    least, most = LEARNING_RATES
    in_range = least <= config.learning_rate <= most
    _require(config, "learning_rate", in_range, f"with --desired-kl a number from {least:g} to {most:g}")


def _check_log_std(config: Config) -> None:
    """Check that the bounds of log standard deviations enclose the value at the start."""
    least = LOG_STD[0] if config.log_std_min is None else config.log_std_min
    most = LOG_STD[1] if config.log_std_max is None else config.log_std_max
    _require(config, "log_std_max", least <= most, "at least --log-std-min")
    starts_within = least <= config.log_std_init <= most
    _require(config, "log_std_init", starts_within, f"a number from {least:g} to {most:g}")
