"""Flags of the three scripts: each is a field of a dataclass, whose docstring is its `--help`.

Building a Config checks types and values (`config_values.py`), and does nothing else. What takes an
import or a look at the machine is checked by `fabric_ppo.run.resolve`, before anything starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fabric_ppo.config_arguments import ARGUMENT_FIELDS, Arguments, arguments_of
from fabric_ppo.config_call import called_from_python
from fabric_ppo.config_schedule import Scheduled, flag_schedule
from fabric_ppo.config_values import check_values, field_types, plain_value
from fabric_ppo.process.errors import ConfigError

if TYPE_CHECKING:
    PathText = str | os.PathLike[str]
else:
    PathText = str  # the command line and YAML files have text
"""Path of a folder or file: text, or from Python a `pathlib.Path`; `resolve` makes it text."""
TEST_STEP_LIMIT = 108_000
"""Default of `--test-step-limit`: no limit that Gymnasium registers is higher."""
MAY_DIFFER = (
    *("total_timesteps", "stop_at_return", "checkpoint_every", "keep_checkpoints"),
    *("capture_video", "test_episodes", "test_step_limit", "profile", "quiet", "callback"),
    *("track", "track_project", "track_group", "track_tags", "track_timeout"),
    *("env_backend", "env_timeout", "env_start_method", "restart_envs", "timeout", "num_threads"),
    *("info_keys", "exp_name", "init_from"),
)
"""Flags that may have other values in a resumed run; the help of `--resume` lists them."""
_NOT_OF_THE_RESULT = ("config", "run_dir", "log_dir", "resume")
"""Flags that are not in config.yaml: the place of a run's folder, and how it was started."""


@dataclass(frozen=True)
class EnvironmentFlags:
    """Environment to train in."""

    env_id: str = "CartPole-v1"
    """Id of the environment, as `gymnasium.make` takes it, `module:Env-v0` included."""
    num_envs: int = 2
    """Environments per rank."""
    env_kwargs: Arguments = None
    """Keyword arguments for the environment's constructor (not with envpool), as JSON, such as
    '{"enable_wind": true}'; in YAML and from Python a mapping."""
    env_wrapper: str | None = None
    """Function `module:name` from environment to environment that each one goes through (not with
    envpool or vector); several, the innermost first, with commas between them."""
    env_preset: str | None = None
    """atari: an Atari game with no-op starts, frame skip 4, 84 x 84 gray frames, four stacked, and
    for what is learnt rewards by their sign and a lost life as an end. Tests and logged returns are
    of full games and raw rewards."""
    obs_keys: str | None = None
    """Parts of a Dict observation that the agent takes, such as image,direction; a part of a nested
    Dict as outer.inner. None: all. An action_mask is used in any case."""
    critic_keys: str | None = None
    """Parts of a Dict observation that the value network alone takes, named as in --obs-keys, such as
    state,goal.inner: the policy takes the others, or those of --obs-keys. None: it takes all."""
    frame_stack: int = 1
    """Last observations that the agent takes for one, oldest first (not with envpool or vector);
    those of an image are further channels. Where an episode begins, its first one stands for all."""
    action_bounds: Literal["clip", "rescale", "squash"] = "rescale"
    """Mapping of continuous actions into their bounds: cut off there (clip), with -1 .. 1 stretched
    over the bounds first (rescale), or by way of tanh (squash)."""


@dataclass(frozen=True)
class LengthFlags:
    """Length, seed and name of the run."""

    config: PathText | None = None
    """YAML file of flags to start from, such as a run folder's config.yaml, or the name of a preset.
    Flags override it. `fabric-ppo presets` lists the presets; a file of that name comes first."""
    total_timesteps: int = 65536
    """Length of the training, in units of --timestep-unit."""
    timestep_unit: Literal["transition", "iteration"] = "transition"
    """Unit of --total-timesteps: transitions over all ranks, or calls of a rank's vector
    environment."""
    stop_at_return: float | None = None
    """End when the mean return of the last 100 training episodes reaches this."""
    seed: int = 42
    """Seed of every random draw: environments, actions, minibatches, initial weights."""
    exp_name: str = "default"
    """Name of the experiment, part of the run folder's name."""


@dataclass(frozen=True)
class AlgorithmFlags:
    """Algorithm: rollouts, objective and optimizer."""

    num_steps: int = 128
    """Steps per environment and rollout."""
    per_rank_batch_size: int = 64
    """Rows of a minibatch on each rank."""
    update_epochs: int = 10
    """Passes over a rollout's data in each update."""
    share_data: bool = False
    """Gather the data of all ranks; each trains on its part of every minibatch."""
    optimizer: str = "adam"
    """Optimizer: adam, adamw (decoupled weight decay), or a class of PyTorch's kind, module:Class."""
    optimizer_kwargs: Arguments = None
    """Further arguments of the optimizer's constructor, as JSON, such as '{"weight_decay": 0.01}' of
    adamw; in YAML and from Python a mapping."""
    learning_rate: Scheduled = 1e-3
    """Step size of the optimizer, or a schedule of it. A number falls to zero over the run unless
    --no-anneal-lr is given. A schedule, such as cosine:1e-3:1e-5 from 1e-3 to 1e-5, is constant,
    linear or cosine; it ends at zero where no end is given; :warmup=0.1 behind it has it rise
    linearly over the first tenth of the run."""
    anneal_lr: bool = True
    """Lower a learning rate that is a number linearly to zero over the run."""
    desired_kl: float | None = None
    """Have the learning rate follow the approximate KL divergence, mean over an update and all
    ranks: after one above twice this it is divided by 1.5, after one below half of it multiplied,
    within 1e-5 .. 1e-2. Needs --no-anneal-lr."""
    adam_eps: float = 1e-5
    """Epsilon of adam and adamw."""
    max_grad_norm: float = 0.5
    """Largest norm of the gradient; longer ones are scaled down."""
    gamma: float = 0.99
    """Discount factor."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    clip_coef: Scheduled = 0.2
    """Clipping range of the surrogate objective, and of the value with --clip-vloss. A number or a
    schedule, as of --learning-rate."""
    anneal_clip_coef: bool = False
    """Lower --clip-coef linearly to zero over the run, if it is a number."""
    clip_vloss: bool = False
    """Clip the value loss around the value at collection time."""
    vf_coef: float = 0.5
    """Weight of the value loss, which carries a factor 1/2 of its own."""
    ent_coef: Scheduled = 0.0
    """Weight of the entropy bonus. A number or a schedule, as of --learning-rate."""
    anneal_ent_coef: bool = False
    """Lower --ent-coef linearly to zero over the run, if it is a number."""
    target_kl: float | None = None
    """End an update's epochs early, on all ranks alike, once the approximate KL divergence of the
    policy from the one that collected, mean over an epoch, exceeds 1.5 times this."""
    normalize_advantages: bool = True
    """Normalise advantages once per update, over the transitions of all ranks."""
    normalize_observations: bool = False
    """Normalise Box observations by their running mean and deviation over all ranks. Of nested ones
    the Box parts are normalised; images that go through a network are not."""
    normalize_rewards: bool = False
    """Divide rewards by the running deviation of discounted returns over all ranks."""


@dataclass(frozen=True)
class NetworkFlags:
    """Networks of policy and value."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, of policy and value network alike."""
    activation_function: Literal["relu", "tanh"] = "relu"
    """Activation between the layers of the networks."""
    shared_trunk: bool = False
    """Let policy and value share the hidden layers; each then has one linear layer of its own."""
    layer_norm: bool = False
    """Normalise each hidden layer before its activation."""
    encoder: str = "auto"
    """Network that policy and value share for images of bytes: nature, impala, small (a third of
    nature's work), flatten (none), or auto, which is nature from 36 x 36 on. Or a class of your own
    for all Box observations, `module:Class`."""
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
    """Bound above the log standard deviation of continuous actions. None: 2 with
    --state-dependent-std, else no bound."""
    ortho_init: bool = False
    """Initialise weights orthogonally (gains sqrt(2), 0.01 for the policy head, 1 for the value
    head), but for an encoder of your own."""
    init_from: PathText | None = None
    """Run folder or checkpoint whose policy the training starts with, or hf://USER/NAME of the Hugging
    Face Hub; every rank with environments reads it."""


@dataclass(frozen=True)
class ProcessFlags:
    """Processes and devices."""

    env_backend: Literal["sync", "async", "envpool", "vector"] = "sync"
    """Backend of the environments: this process (sync), a worker process each (async), EnvPool's
    threads, or environments that step as a batch (vector), which ids that have no others imply."""
    env_timeout: float = 60.0
    """Seconds that an async worker may take for one step or reset."""
    env_start_method: Literal["fork", "forkserver", "spawn"] | None = None
    """How async workers start; None: fork on Linux, else spawn. Threads do not survive a fork."""
    restart_envs: bool = False
    """Replace an async worker that died or hangs, rebuild its episode, and go on."""
    num_threads: int = 0
    """Threads of each rank, PyTorch's and EnvPool's; 0: the cores of the host over its ranks, but
    one for PyTorch where matrix products are small."""
    timeout: float = 300.0
    """Seconds after which a rank that does not answer ends the run."""
    compile: bool = False
    """Have torch.compile translate the loss before training starts; needs a C++ compiler."""
    torch_deterministic: bool = True
    """Use deterministic algorithms only (matters on GPUs)."""


@dataclass(frozen=True)
class RecordFlags:
    """Records: folders, checkpoints, evaluations, videos and metrics."""

    run_dir: PathText | None = None
    """Folder of this run; by default a new one in --log-dir."""
    resume: bool = False
    """Go on with the newest checkpoint in --run-dir, or start there if it has none. The folder
    holds the run's flags: to go on no other is needed. Those that are given besides must be the
    run's own, but for --total-timesteps (upward: with --anneal-lr the learning rate, and what else
    is annealed, follows the new total, and jumps) and those that leave the result as it is:
    --stop-at-return, --checkpoint-every, --keep-checkpoints, --capture-video, --test-episodes,
    --test-step-limit, --env-backend (sync, async), --env-timeout, --env-start-method,
    --restart-envs, --timeout, --num-threads, --profile, --quiet, --track, --track-project,
    --track-group, --track-tags, --track-timeout, --callback, --info-keys, --exp-name,
    --init-from."""
    log_dir: PathText = "logs"
    """Folder in which run folders are made."""
    checkpoint_every: int = 0
    """Updates between checkpoints; 0: about one a minute. There is always one at the end."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints to keep, besides the best."""
    eval_every: int = 0
    """Updates between evaluations; 0: none. Each plays --eval-episodes greedy episodes in
    environments of their own; best.ckpt is then the best by these. Other ranks wait for it, no
    longer than --timeout."""
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    test_episodes: int = 10
    """Greedy episodes played at the end; 0: no test."""
    test_step_limit: int = TEST_STEP_LIMIT
    """Steps after which an episode of a test or an evaluation is cut off and counted as such."""
    capture_video: bool = False
    """Record environment 0 of rank 0 into train_videos/ (not with envpool or vector), one test
    episode into test_videos/."""
    track: str = "tensorboard,jsonl"
    """Where metrics go, several names with spaces or commas between them: tensorboard, jsonl
    (metrics.jsonl), wandb, mlflow, trackio, or a tracker of your own, module:Class; none alone for
    no tracker. Into wandb, mlflow and trackio metrics.jsonl is copied, which is written for them,
    too."""
    track_project: str = "fabric-ppo"
    """Project of W&B and Trackio, experiment of MLflow."""
    track_group: str | None = None
    """Group of runs there; None: the environment's id and --exp-name, so that seeds are together."""
    track_tags: str | None = None
    """Tags of the run there, several words or with commas between them; none drops those of a
    resumed run."""
    track_timeout: float = 60.0
    """Seconds after which a tracker that does not answer is given up; files are waited for."""
    callback: str | None = None
    """Callback of your own, module:Class; several with spaces or commas between them, or the flag
    repeated; none drops those of a resumed run."""
    info_keys: str | None = None
    """Numbers in the info of an episode's last step to log besides is_success, with commas between
    them, such as reward_forward,stats.speed; sum:reward_ctrl adds up those of all its steps; none
    drops those of a resumed run."""
    quiet: bool = False
    """Print nothing but warnings and errors."""
    profile: bool = False
    """Print where the time went, in a table at the end; write a trace for Chrome's or Perfetto's
    viewer."""


# dataclasses take the fields of their bases from the last to the first
@called_from_python
@dataclass(frozen=True, repr=False)
class Config(RecordFlags, ProcessFlags, NetworkFlags, AlgorithmFlags, LengthFlags, EnvironmentFlags):
    """Hyperparameters of a run. Building one checks types and values.

    NumPy's numbers are kept as Python has them, a float without a fraction is a whole number, and a
    list of names is one text with commas. A name that is no flag's raises a ConfigError.

    Example:
        >>> from fabric_ppo import Config
        >>> Config(num_envs=4, total_timesteps=1e6)
        Config(num_envs=4, total_timesteps=1000000)
        >>> Config(n_steps=64)
        Traceback (most recent call last):
        fabric_ppo.process.errors.ConfigError: Config(n_steps=...): here it is num_steps
    """

    script: ClassVar[str] = "fabric"
    """Name of the script in `logs/<script>_logs`, `summary.json` and `train_<script>.py`."""

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ConfigError: a value cannot work; names the first such flag.
        """
        check_values(self)

    def __repr__(self) -> str:
        """Return the call that makes this Config: only what differs from the defaults is in it."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        given = {name: value for name, (value, default) in values.items() if value != default}
        for name in ARGUMENT_FIELDS:
            if isinstance(given.get(name), Mapping):
                given[name] = arguments_of(given[name], name)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    @property
    def overlaps(self) -> bool:
        """True if rollouts are collected while updates are made."""
        return False

    @property
    def effective_sequence_length(self) -> int:
        """Rows that minibatches keep together: --sequence-length with --recurrent, else 1."""
        return 1 if self.recurrent == "none" else self.sequence_length

    @property
    def initial_learning_rate(self) -> float:
        """The number in --learning-rate; with a schedule, the one that it starts with."""
        return flag_schedule(self, "learning_rate").start

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

    def to_dict(self) -> dict[str, Any]:
        """Return the flags in config.yaml, field name -> value of a type that YAML has.

        Equal configurations have equal values, also where an int stands for a float.
        """
        kinds = field_types(type(self))
        return {
            name: plain_value(name, getattr(self, name), kind)
            for name, kind in kinds.items()
            if name not in _NOT_OF_THE_RESULT
        }


@called_from_python
@dataclass(frozen=True, repr=False)
class TorchConfig(Config):
    """Flags of `train_torch.py`: those of `Config`, checked alike, and `cuda`.

    Example:
        >>> from fabric_ppo import TorchConfig
        >>> TorchConfig(env_id="Acrobot-v1").cuda
        False
    """

    script: ClassVar[str] = "torch"

    cuda: bool = False
    """Train on GPUs, one per rank, with nccl."""


@called_from_python
@dataclass(frozen=True, repr=False)
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


SCRIPT_CONFIGS: dict[str, type[Config]] = {"torch": TorchConfig, "fabric": Config, "decoupled": DecoupledConfig}
"""Names of the scripts on the command line of `python -m fabric_ppo`, and their flags."""


def script_file(config_type: type[Config]) -> str:
    """Return the file of the script that takes these flags.

    >>> script_file(DecoupledConfig)
    'train_fabric_decoupled.py'
    """
    return f"train_{config_type.script}.py"


FLAG_GROUPS: tuple[type, ...] = tuple(reversed(Config.__bases__))
"""Groups of the flags in the order of `--help`; the docstring of each is its title."""
