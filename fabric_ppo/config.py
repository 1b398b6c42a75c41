"""Flags of the three scripts: each is a field of a dataclass, whose docstring is its `--help`.

Building a Config checks types and values (`config_values.py`), and does nothing else. Checks that
need an import or the machine are made by `fabric_ppo.run.resolve`, before anything starts.
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
    """Id of the environment for `gymnasium.make`, also as `module:Env-v0`."""
    num_envs: int = 2
    """Environments per rank."""
    env_kwargs: Arguments = None
    """Keyword arguments for the environment's constructor, as JSON, such as '{"enable_wind": true}'
    (not with envpool). In YAML and from Python they are a mapping."""
    env_wrapper: str | None = None
    """Function `module:name` that takes an environment and returns a wrapped one (not with envpool
    or vector). Several are separated by commas, the innermost first."""
    env_preset: str | None = None
    """atari: the usual form of an Atari game, with no-op starts, frame skip 4, 84 x 84 gray frames,
    four of them stacked. Training uses the sign of rewards, and a lost life ends an episode. Tests
    and logged returns use full games and raw rewards."""
    obs_keys: str | None = None
    """Parts of a Dict observation that the agent takes, such as image,direction. A part of a nested
    Dict is written outer.inner. None: all. An action_mask is always used."""
    critic_keys: str | None = None
    """Parts of a Dict observation for the value network alone, such as state,goal.inner, written as
    in --obs-keys. The policy takes the others, or those of --obs-keys. None: the policy takes
    all."""
    frame_stack: int = 1
    """Number of last observations that are stacked into one, oldest first (not with envpool or
    vector). Images are stacked as channels. At the start of an episode its first observation is
    repeated."""
    action_bounds: Literal["clip", "rescale", "squash"] = "rescale"
    """Mapping of continuous actions into their bounds: clip cuts them off, rescale first stretches
    -1 .. 1 over the bounds, squash uses tanh."""


@dataclass(frozen=True)
class LengthFlags:
    """Length, seed and name of the run."""

    config: PathText | None = None
    """YAML file of flags to start from, such as a run folder's config.yaml, or the name of a
    preset. Flags override it. `fabric-ppo presets` lists the presets. A file is preferred to a
    preset of the same name."""
    total_timesteps: int = 65536
    """Length of the training, in units of --timestep-unit."""
    timestep_unit: Literal["transition", "iteration"] = "transition"
    """Unit of --total-timesteps: transitions over all ranks, or calls of a rank's vector
    environment."""
    stop_at_return: float | None = None
    """End the run when the mean return of the last 100 training episodes reaches this value."""
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
    """Gather the data of all ranks; each rank trains on its part of every minibatch."""
    optimizer: str = "adam"
    """Optimizer: adam, adamw (decoupled weight decay), or a class with PyTorch's interface,
    module:Class."""
    optimizer_kwargs: Arguments = None
    """Further arguments of the optimizer's constructor, as JSON, such as '{"weight_decay": 0.01}'
    for adamw. In YAML and from Python they are a mapping."""
    learning_rate: Scheduled = 1e-3
    """Learning rate, a number or a schedule. A number falls to zero over the run unless
    --no-anneal-lr is given. A schedule is constant, linear or cosine; cosine:1e-3:1e-5 goes from
    1e-3 to 1e-5. Without an end value linear and cosine end at zero. With :warmup=0.1 after it the
    rate rises linearly over the first tenth of the run."""
    anneal_lr: bool = True
    """Lower --learning-rate linearly to zero over the run, if it is a number."""
    desired_kl: float | None = None
    """Adapt the learning rate to the approximate KL divergence, mean over an update and all ranks.
    Above twice this value the rate is divided by 1.5, below half of it multiplied by 1.5, within
    1e-5 .. 1e-2. Needs --no-anneal-lr."""
    adam_eps: float = 1e-5
    """Epsilon of adam and adamw."""
    max_grad_norm: float = 0.5
    """Largest norm of the gradient; a larger gradient is scaled down."""
    gamma: float = 0.99
    """Discount factor."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    clip_coef: Scheduled = 0.2
    """Clipping range of the surrogate objective, and with --clip-vloss of the value. A number or a
    schedule, as for --learning-rate."""
    anneal_clip_coef: bool = False
    """Lower --clip-coef linearly to zero over the run, if it is a number."""
    clip_vloss: bool = False
    """Clip the value loss around the value at collection time."""
    vf_coef: float = 0.5
    """Weight of the value loss, which itself includes a factor of 1/2."""
    ent_coef: Scheduled = 0.0
    """Weight of the entropy bonus. A number or a schedule, as for --learning-rate."""
    anneal_ent_coef: bool = False
    """Lower --ent-coef linearly to zero over the run, if it is a number."""
    target_kl: float | None = None
    """End an update's epochs early, on all ranks alike, if the policy has moved too far: the
    approximate KL divergence from the policy that collected the data, mean over an epoch, exceeds
    1.5 times this value."""
    normalize_advantages: bool = True
    """Normalise advantages once per update, over the transitions of all ranks."""
    normalize_observations: bool = False
    """Normalise Box observations by their running mean and standard deviation over all ranks. Of
    nested observations the Box parts are normalised. Images that go through an image network are
    not."""
    normalize_rewards: bool = False
    """Divide rewards by the running standard deviation of discounted returns over all ranks."""


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
    """Network for images of bytes, shared by policy and value: nature, impala, small (a third of
    nature's work), flatten (none), or auto, which is nature from 36 x 36 on. Or a class of your own
    for all Box observations, `module:Class`."""
    recurrent: Literal["none", "lstm", "gru"] = "none"
    """Recurrent layer, as a memory, after the layers that policy and value share."""
    recurrent_size: int = 64
    """Width of the recurrent layer."""
    sequence_length: int = 16
    """Steps through which gradients flow back in time with --recurrent. A rollout is cut into
    sequences of this length."""
    log_std_init: float = 0.0
    """Initial log standard deviation of continuous actions."""
    state_dependent_std: bool = False
    """Let the policy network also output the log standard deviation of continuous actions."""
    log_std_min: float | None = None
    """Lower bound of the log standard deviation of continuous actions. None: -20 with
    --state-dependent-std, else no bound."""
    log_std_max: float | None = None
    """Upper bound of the log standard deviation of continuous actions. None: 2 with
    --state-dependent-std, else no bound."""
    ortho_init: bool = False
    """Initialise weights orthogonally (gains sqrt(2), 0.01 for the policy head, 1 for the value
    head), except those of an encoder of your own."""
    init_from: PathText | None = None
    """Run folder or checkpoint whose policy the training starts with, or hf://USER/NAME of the
    Hugging Face Hub. Every rank with environments reads it."""


@dataclass(frozen=True)
class ProcessFlags:
    """Processes and devices."""

    env_backend: Literal["sync", "async", "envpool", "vector"] = "sync"
    """Backend of the environments: this process (sync), a worker process each (async), EnvPool's
    threads (envpool), or environments that step as a batch (vector). An id that exists only as a
    batch implies vector."""
    env_timeout: float = 60.0
    """Seconds that an async worker may take for one step or reset."""
    env_start_method: Literal["fork", "forkserver", "spawn"] | None = None
    """Start method of async workers. None: fork on Linux, else spawn. Threads do not survive a fork."""
    restart_envs: bool = False
    """Replace an async worker that died or hangs, rebuild its episode, and continue."""
    num_threads: int = 0
    """Threads of each rank, PyTorch's and EnvPool's. 0: the cores of the host divided by its ranks,
    but one for PyTorch if matrix products are small."""
    timeout: float = 300.0
    """Seconds after which a rank that does not answer ends the run."""
    compile: bool = False
    """Let torch.compile translate the loss before training starts; needs a C++ compiler. On a GPU a
    gradient step, and a rollout in functional environments, is also recorded as one CUDA graph, which
    needs no compiler."""
    torch_deterministic: bool = True
    """Use deterministic algorithms only (matters on GPUs)."""


@dataclass(frozen=True)
class RecordFlags:
    """Records: folders, checkpoints, evaluations, videos and metrics."""

    run_dir: PathText | None = None
    """Folder of this run; by default a new one in --log-dir."""
    resume: bool = False
    """Continue from the newest checkpoint in --run-dir, or start there if it has none. The folder
    holds the run's flags, so no other flag is needed. Other flags must be the run's own, except for
    --total-timesteps, which may grow, and those that do not change the result: --stop-at-return,
    --checkpoint-every, --keep-checkpoints, --capture-video, --test-episodes, --test-step-limit,
    --env-backend (sync, async), --env-timeout, --env-start-method, --restart-envs, --timeout,
    --num-threads, --profile, --quiet, --track, --track-project, --track-group, --track-tags,
    --track-timeout, --callback, --info-keys, --exp-name, --init-from. With more timesteps the
    learning rate and other annealed values follow the new total, and jump."""
    log_dir: PathText = "logs"
    """Folder in which run folders are made."""
    checkpoint_every: int = 0
    """Updates between checkpoints; 0: about one a minute. There is always one at the end."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints to keep, besides the best."""
    eval_every: int = 0
    """Updates between evaluations; 0: none. Each plays --eval-episodes greedy episodes in
    environments of its own, and best.ckpt is then the best by these. Other ranks wait for it, no
    longer than --timeout."""
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    test_episodes: int = 10
    """Greedy episodes played at the end; 0: no test."""
    test_step_limit: int = TEST_STEP_LIMIT
    """Steps after which an episode of a test or an evaluation is cut off and counted as such."""
    capture_video: bool = False
    """Record environment 0 of rank 0 to train_videos/ (not with envpool or vector), and one test
    episode to test_videos/."""
    track: str = "tensorboard,jsonl"
    """Trackers that get the metrics, separated by spaces or commas: tensorboard, jsonl
    (metrics.jsonl), wandb, mlflow, trackio, or your own, module:Class; none alone for no tracker.
    For wandb, mlflow and trackio metrics.jsonl is written, too, and copied into them."""
    track_project: str = "fabric-ppo"
    """Project of W&B and Trackio, experiment of MLflow."""
    track_group: str | None = None
    """Group of the run in W&B, MLflow and Trackio. None: the environment's id and --exp-name, so that
    all seeds are in one group."""
    track_tags: str | None = None
    """Tags of the run in W&B, MLflow and Trackio, separated by spaces or commas; none drops those of a
    resumed run."""
    track_timeout: float = 60.0
    """Seconds after which a tracker that does not answer is given up. Trackers that write files are
    always waited for."""
    callback: str | None = None
    """Callback of your own, module:Class. For several, separate them by spaces or commas, or repeat
    the flag; none drops those of a resumed run."""
    info_keys: str | None = None
    """Numbers to log besides is_success, from the info of an episode's last step, separated by
    commas, such as reward_forward,stats.speed. sum:reward_ctrl adds up a number over all steps of
    the episode; none drops the keys of a resumed run."""
    quiet: bool = False
    """Print nothing but warnings and errors."""
    profile: bool = False
    """Print a table of the times at the end, and write a trace for Chrome's or Perfetto's viewer."""


# dataclasses take the fields of their bases from the last to the first
@called_from_python
@dataclass(frozen=True, repr=False)
class Config(RecordFlags, ProcessFlags, NetworkFlags, AlgorithmFlags, LengthFlags, EnvironmentFlags):
    """Hyperparameters of a run. The constructor checks types and values.

    NumPy's numbers become Python's, a float without a fraction becomes an int, and a list of names
    becomes one text with commas. An unknown name raises a ConfigError.

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
        """Return the call that makes this Config, with the values that differ from the defaults."""
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
        """Number of rows that minibatches keep together: --sequence-length with --recurrent, else 1."""
        return 1 if self.recurrent == "none" else self.sequence_length

    @property
    def initial_learning_rate(self) -> float:
        """Number in --learning-rate, or the one with which its schedule starts."""
        return flag_schedule(self, "learning_rate").start

    def num_updates(self, num_ranks: int) -> int:
        """Return the number of updates of a run, rounded down.

        With the unit `transition`, as is usual, it is total / (num_steps * num_envs * ranks). With
        `iteration` it is total / num_steps: a timestep is one call of each rank's vector environment.

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
        """Return the flags of config.yaml: field name -> value of a type that YAML has.

        Equal configurations have equal values, also if an int is given for a float.
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
    """Flags of `train_torch.py`: those of `Config`, and `cuda`.

    Example:
        >>> from fabric_ppo import TorchConfig
        >>> TorchConfig(env_id="Acrobot-v1").cuda
        False
    """

    script: ClassVar[str] = "torch"

    cuda: bool = False
    """Train on GPUs, one per rank. If there are fewer GPUs, ranks share them, over gloo instead of nccl."""


@called_from_python
@dataclass(frozen=True, repr=False)
class DecoupledConfig(Config):
    """Flags of `train_fabric_decoupled.py`."""

    script: ClassVar[str] = "fabric_decoupled"

    cuda: bool = False
    """Put the trainers on GPUs."""
    player_on_gpu: bool = False
    """Put the player on a GPU too; needs --cuda."""
    overlap: bool = False
    """Collect the next rollout while the trainers optimise; its policy is one update old."""

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
        """See `Config`: one process is the player, and each of the others trains on at least one row."""
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
