"""One training run: its folder, what is logged and shown, when it stops, and what it leaves behind."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
import yaml

from fabric_ppo import profile
from fabric_ppo.agent import Agent, start_from
from fabric_ppo.checkpoint import Checkpoint, drop_old, write_atomically
from fabric_ppo.config import LEARNING_RATES, Config
from fabric_ppo.distributed import Ranks, prepare_process
from fabric_ppo.envs.base import is_repeatable
from fabric_ppo.errors import ConfigError, StoppedBySignal, first_line
from fabric_ppo.evaluate import Policy, TestResult, evaluate, own_modules
from fabric_ppo.launch import is_rank_zero, read_launch, say, tell
from fabric_ppo.loggers import JsonLines, Writes, cut_back
from fabric_ppo.policy_file import save_policy
from fabric_ppo.profile import timed
from fabric_ppo.progress import Progress
from fabric_ppo.replay import ActionLog, Array, PastEpisode, Trail
from fabric_ppo.rollout import Episode, Rollout, RolloutBuffer
from fabric_ppo.run_state import (
    Checkpoints,
    HasState,
    Snapshot,
    action_arrays,
    copies,
    find_checkpoint,
    from_rank_zero,
    gather_trail,
    load_optimizer,
    lock_folder,
    optimizer_tensors,
    past_episodes,
    require_same_run,
    require_tensors,
    require_values,
    surroundings,
)
from fabric_ppo.signals import signals
from fabric_ppo.update import Guard, Stats, adapt_learning_rate

R = TypeVar("R", bound="Closable")
RETURN_WINDOW = 100
_EVALUATION = 2**31
"""Bit of the seed that tells an evaluation's episodes from the test's."""


class Closable(Protocol):
    """What a run closes when it ends."""

    def close(self) -> object:
        """Close it."""


@dataclass(frozen=True)
class Summary:
    """What a run came to; `summary.json`."""

    script: str
    env_id: str
    seed: int
    world_size: int
    total_timesteps: int
    env_steps: int
    updates: int
    gradient_steps: int
    wall_seconds: float
    train_seconds: float
    steps_per_second: float
    train_return_mean: float | None
    train_return_episodes: int
    resumes: int
    exact_resume: bool
    test: dict[str, Any]


def new_run_dir(config: Config, script: str) -> Path:
    """Where a run will lie; unless `--run-dir` names it, it is made at once, and goes again if it stays empty.

    Raises:
        ConfigError: `--run-dir` holds a run already, or there cannot be such a folder.
    """
    try:
        return _run_dir(config, script)
    except OSError as error:
        where = f"--log-dir {config.log_dir}" if config.run_dir is None else f"--run-dir {config.run_dir}"
        raise ConfigError(f"{where}: cannot be written ({error.strerror}); a folder is expected") from None


def _run_dir(config: Config, script: str) -> Path:
    if config.run_dir is not None:
        path = Path(config.run_dir)
        if is_rank_zero() and not config.resume and (path / "config.yaml").exists():
            raise ConfigError(f"--run-dir {config.run_dir}: holds a run already; a new folder or --resume is expected")
        if is_rank_zero() and path.exists() and not path.is_dir():
            raise ConfigError(f"--run-dir {config.run_dir}: is a file; a folder is expected")
        return path
    env_id = config.env_id.replace("/", "-").replace(":", "-")
    name = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{env_id}_{config.exp_name}_{config.seed}"
    path = Path(config.log_dir, f"{script}_logs", name)
    twin = 2
    while is_rank_zero() and not _claim(path):
        path = path.with_name(f"{name}_{twin}")
        twin += 1
    return path


def _claim(path: Path) -> bool:
    """Make a folder, unless another run, maybe started in the same second, has it."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    atexit.register(_remove_empty, missing)
    return True


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


class Run(contextlib.ExitStack):
    """Counts the updates and knows what became of them; as a context manager it closes what it was given.

    On rank 0 it keeps, from update to update, all that the run goes on from: a checkpoint can be written at any
    moment, also in the middle of an update or when another rank has died, and asks nobody.

    Attributes:
        num_updates: how many updates the run has.
        first_update: the one that it begins with; not 0 where it was resumed.
        dir: its folder; a run that cannot start leaves none.
        video_dir: where training videos go; empty for none (EnvPool's environments cannot be recorded).
        env_steps: transitions so far, over all ranks.
    """

    def __init__(self, config: Config, script: str, ranks: Ranks, run_dir: Path) -> None:
        """Prepare a run, and find the checkpoint that it goes on from with `--resume`.

        Args:
            config: its configuration.
            script: which script runs, for the summary.
            ranks: those with environments.
            run_dir: from `new_run_dir`.

        Raises:
            ConfigError: not even one update; no checkpoint that fits these flags.
        """
        super().__init__()
        self._wall_started = time.perf_counter()
        self._config, self._script, self._ranks, self._leads = config, script, ranks, ranks.rank == 0
        prepare_process(config, ranks)
        named_by_rank_zero = Path(os.fsdecode(from_rank_zero(os.fsencode(run_dir), ranks)))
        self.dir = run_dir = named_by_rank_zero if config.run_dir is None else run_dir
        records = config.capture_video and config.env_backend != "envpool"
        self.video_dir = str(run_dir / "train_videos") if records else ""
        self.num_updates = config.num_updates(ranks.size)
        self._steps_per_update = config.num_steps * config.num_envs * ranks.size
        self.first_update = self.env_steps = self._updates = self._gradient_steps = self._resumes = 0
        self._train_seconds = self._wall_before = 0.0
        self._window: deque[float] = deque(maxlen=RETURN_WINDOW)
        self._is_over = self._is_stopping = False
        self._is_exact = True
        self._eval_return: float | None = None
        self._has_begun = False
        self._writes = Writes()
        self._log_dict: Callable[[dict[str, float], int], object] = lambda metrics, step: None
        self._checkpoints = Checkpoints(run_dir / "checkpoints", config, self._writes)
        self._resumed_from = self._find_checkpoint() if config.resume else None

    def _find_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to go on from; takes what was logged after it out of the folder."""
        has_folder = self._leads and self.dir.exists()
        if has_folder:
            self.callback(lock_folder(self.dir))
        checkpoint = find_checkpoint(self.dir, self._ranks)
        if checkpoint is not None:
            with self._fitting():
                require_values(checkpoint.values)
                require_same_run(self._config, self._script, read_launch().world_size, checkpoint.values)
                if checkpoint.values["update"] > self.num_updates:
                    raise ValueError(f"it is of update {checkpoint.values['update']} of {self.num_updates}")
            self.first_update, self.env_steps = checkpoint.values["update"], checkpoint.values["env_steps"]
        if has_folder:
            try:
                cut_back(self.dir, self.first_update, self.env_steps)
            except OSError as error:
                raise ConfigError(
                    f"--resume: what {self.dir} has logged cannot be written ({error.strerror})"
                ) from None
            self._writes.do("a checkpoint", drop_old, self.dir / "checkpoints", self._config.keep_checkpoints)
        return checkpoint

    def closing(self, resource: R) -> R:
        """Close `resource` when the run ends, however it ends; flush it before each checkpoint, if it can be."""
        self.callback(self._writes.do, f"what {type(resource).__name__} had left", resource.close)
        if hasattr(resource, "flush"):
            self._checkpoints.flushes.append(resource.flush)
        return resource

    def log_to(self, log_dict: Callable[[dict[str, float], int], object]) -> None:
        """Have rank 0 give the scalars of each update, and of the test, to `log_dict(metrics, step)`."""
        self._log_dict = log_dict

    @timed("logging")
    def _log_scalars(self, metrics: dict[str, float]) -> None:
        self._writes.do("TensorBoard's events", self._log_dict, metrics, self.env_steps)

    def restore(self, agent: Agent, optimizer: HasState, buffer: RolloutBuffer) -> None:
        """Start the environments, with the policy of `--init-from` if one is named, and make the folder.

        Where `--resume` found a checkpoint, bring everything back to it instead.

        Args:
            agent: what is trained, the plain module.
            optimizer: its optimizer.
            buffer: of this rank's environments.

        Raises:
            ConfigError: the checkpoint or the policy does not fit, or the folder cannot be made.
        """
        self._agent, self._optimizer = agent, optimizer
        self._constants: dict[str, Any] = {
            "script": self._script,
            "config": self._config.to_dict(),
            "world_size": read_launch().world_size,
            "surroundings": surroundings(),
            "env_spec": agent.spec.to_json(),
            "agent": agent.architecture.to_json(),
        }
        if self._resumed_from is None:
            if self._config.init_from is not None:
                start_from(agent, self._config.init_from)
            buffer.start()
            self._log = ActionLog.empty(buffer.num_envs * self._ranks.size, buffer.actions.shape[2:], buffer.log_dtype)
        else:
            first_env = self._ranks.rank * buffer.num_envs
            with self._fitting():
                all_envs = buffer.num_envs * self._ranks.size
                obs, memory, actions = (
                    torch.from_numpy(np.zeros((all_envs, *like.shape[2:]), dtype))
                    for like, dtype in (
                        (buffer.obs, buffer.obs.dtype),
                        (buffer.memory, buffer.memory.dtype),
                        (buffer.actions, buffer.log_dtype),
                    )
                )
                env = {"obs": obs, "memory": memory, "actions": actions[None]}
                require_tensors(self._resumed_from, agent, self._config.overlaps, env)
                self._load(self._resumed_from)
                past = past_episodes(self._resumed_from, first_env, buffer.num_envs, buffer.envs.spec.action)
            self._rebuild_episodes(buffer, past, action_arrays(self._resumed_from))
        self._guard = Guard(agent)
        if self._leads:
            self._make_folder()

    @contextlib.contextmanager
    def _fitting(self) -> Iterator[None]:
        """Say of the checkpoint that it does not fit, where something inside fails."""
        try:
            yield
        except ConfigError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            reason = first_line(error)
            raise ConfigError(f"--resume: the checkpoint in {self.dir} does not fit this run ({reason})") from None

    def _load(self, checkpoint: Checkpoint) -> None:
        values = checkpoint.values
        if values["env_spec"] != self._constants["env_spec"]:
            raise ValueError("the environment has other spaces now")
        self._agent.load_state_dict(checkpoint.under("weights."))
        load_optimizer(self._optimizer, checkpoint.under("optimizer."))
        if self._config.desired_kl is not None:
            self._set_learning_rate(values["learning_rate"])
        self._updates = self.first_update
        self._gradient_steps, self._resumes = values["gradient_steps"], values["resumes"] + 1
        self._train_seconds, self._wall_before = values["train_seconds"], values["wall_seconds"]
        self._window.extend(values["window"])
        self._checkpoints.go_on_from(checkpoint)
        self._is_over, self._is_exact = self._has_reached_goal(), values["exact_resume"]
        before, now = values["surroundings"], self._constants["surroundings"]
        if changed := [name for name in now if before.get(name) != now[name]]:
            self._is_exact = False
            tell(f"resumed with another {', '.join(changed)}: the last bits of the result will differ")

    def _set_learning_rate(self, rate: float) -> None:
        """Go on with the rate that `--desired-kl` has come to."""
        if not LEARNING_RATES[0] <= rate <= LEARNING_RATES[1]:
            raise ValueError(f"its learning_rate is {rate}")
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def _rebuild_episodes(self, buffer: RolloutBuffer, past: list[PastEpisode], logged: Sequence[Array]) -> None:
        """Bring the episodes in progress back, and agree with the other ranks on where that failed."""
        envs, failed = buffer.envs, buffer.start(past)
        reason = next((f"environment {buffer.first_env + index}: {why}" for index, why in enumerate(failed) if why), "")
        if (
            self._leads
            and not reason
            and not (envs.rebuilds_episodes and is_repeatable(envs.spec.env_id, envs.spec.wrapper))
        ):
            reason = "an episode does not follow from its seed and actions alone"
        if reason:
            say(f"warning: {envs.spec.env_id} cannot be resumed exactly: {reason}", sys.stderr)
        flags = self._ranks.gather(torch.tensor([bool(reason), *map(bool, failed)]))
        self._is_exact = self._is_exact and not bool(flags.any())
        begun_anew = flags[:, 1:].flatten().cpu().numpy()
        numbers, lengths, actions = logged
        self._log = ActionLog(numbers + begun_anew, np.where(begun_anew, 0, lengths), actions)

    @contextlib.contextmanager
    def weights_in_flight(self) -> Iterator[None]:
        """Give the agent, for a while, the weights that the rollout in progress was collected with."""
        assert self._resumed_from is not None
        newest = copies(self._agent.state_dict())
        self._agent.load_state_dict(self._resumed_from.under("in_flight."))
        yield
        self._agent.load_state_dict(newest)

    def updates(self) -> Iterator[int]:
        """Count the updates until the run is over; after each, write what is due."""
        self.callback(signals.end_training)
        total = self.num_updates * self._steps_per_update
        self._progress = self.closing(Progress(total, self.env_steps, enabled=self._leads))
        self._has_begun = True
        self._update_started = time.perf_counter()
        self._train_started = self._update_started - self._train_seconds
        if self._config.profile:
            profile.start()
        signals.begin_training(self._checkpoints.save if self._leads else None)
        for update in range(self.first_update, self.num_updates):
            if self._is_over or self._is_stopping:
                break
            yield update
            if self._is_stopping:
                signals.stopping()
            elif self._leads and self._checkpoints.is_due(self._updates, self._eval_return):
                self._checkpoints.save()
        if self._leads:
            self._checkpoints.save()
        signals.end_training()

    def _end_failed(self, error: BaseException) -> None:
        """An update that fails leaves the state from before it, and says where; no signal interrupts that."""
        signals.stopping()
        is_failure = not isinstance(error, (ConfigError, StoppedBySignal))
        if self._has_begun:
            self._progress.close()
            said = self._checkpoints.save() if self._leads else ""
            if is_failure:
                tell(f"the run has failed{said}")
        if is_failure:
            signals.failed(error)

    def _make_folder(self) -> None:
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            if not self._config.resume or self._resumed_from is None:
                self.callback(lock_folder(self.dir))
            values = yaml.safe_dump(self._config.to_dict(), sort_keys=False)
            write_atomically(self.dir / "config.yaml", values.encode())
            self._lines = self.closing(JsonLines(self.dir / "metrics.jsonl"))
        except OSError as error:
            raise ConfigError(f"{self.dir}: cannot be written ({error.strerror}); a folder is expected") from None
        if self._resumed_from is not None:
            tell(f"resumed after update {self.first_update} of {self.num_updates}")
        self._tell_remainder()

    def _tell_remainder(self) -> None:
        config = self._config
        per_update = config.num_steps if config.timestep_unit == "iteration" else self._steps_per_update
        counted = self.num_updates * per_update
        if counted < config.total_timesteps:
            updates = f"{self.num_updates} updates of {per_update}"
            tell(f"--total-timesteps {config.total_timesteps} is rounded down to {counted}: {updates}")

    def finish_update(self, rollout: Rollout, stats: Stats, learning_rate: float) -> None:
        """`agree` and then `report`."""
        self.report(self.agree(rollout, stats), learning_rate)

    def agree(self, rollout: Rollout, stats: Stats) -> Report:
        """Agree with the other ranks on what happened in an update (one collective), and on whether the run goes on.

        Raises:
            TrainingError: something is not finite; the agent has the weights from before this update.
        """
        in_flight = copies(self._guard.kept) if self._config.overlaps else {}
        self._guard.check(stats, self._updates)
        report = replace(self._exchange(rollout, stats), in_flight=in_flight)
        if len(report.moments):
            self._agent.absorb(report.moments)
            self._guard.check(stats, self._updates)  # sums can overflow
        adapt_learning_rate(self._optimizer, self._config, report.metrics["Info/approx_kl"])
        self._updates += 1
        self.env_steps += report.env_steps
        self._gradient_steps += stats.gradient_steps
        self._window.extend(episode.ret for episode in report.episodes)
        self._is_over, self._is_stopping = self._has_reached_goal(), report.is_asked_to_stop
        return report

    @property
    def goes_on(self) -> bool:
        """Whether another update follows the one agreed on."""
        return self._updates < self.num_updates and not (self._is_over or self._is_stopping)

    def report(self, report: Report, learning_rate: float, extra: dict[str, float] | None = None) -> None:
        """Log and show what was agreed on, evaluate if that is due, and then keep what the run could go on from.

        Other ranks may train on meanwhile: it looks at nothing but the agent, the optimizer and what it is given.
        """
        now = time.perf_counter()
        speed = report.env_steps / (now - self._update_started)
        self._update_started = now
        self._train_seconds = now - self._train_started
        metrics = report.metrics | {"Info/learning_rate": learning_rate, "Time/step_per_second": speed} | (extra or {})
        if self._config.restart_envs:
            metrics["Info/env_restarts"] = report.env_restarts
        self._eval_return = self._evaluate()
        if self._eval_return is not None:
            metrics["Eval/return_mean"] = self._eval_return
        if self._leads:
            self._writes.do("metrics.jsonl", self._lines.write, self._line(metrics))
            self._log_scalars(metrics)
            self._log.append(report.trail.actions, report.trail.ended)
            self._checkpoints.keep(self._snapshot(report.trail, report.in_flight))
        self._progress.update(self.env_steps, self._return_mean(), speed)

    @timed("evaluation")
    def _evaluate(self) -> float | None:
        """On rank 0, where an evaluation is due, its mean return; its episodes are not those of the test."""
        every = self._config.eval_every
        if not (self._leads and every and self._updates % every == 0):
            return None
        result = evaluate(Policy(self._agent), self._config.eval_episodes, self._config.seed ^ _EVALUATION)
        return float(np.mean(result.returns))

    def _line(self, metrics: dict[str, float]) -> dict[str, float]:
        return {"step": self.env_steps, "update": self._updates} | metrics

    def _snapshot(self, trail: Trail, in_flight: dict[str, torch.Tensor]) -> Snapshot:
        weights, optimizer = copies(self._guard.kept), copies(optimizer_tensors(self._optimizer))
        values = self._constants | {
            "update": self._updates,
            "env_steps": self.env_steps,
            "gradient_steps": self._gradient_steps,
            "learning_rate": self._optimizer.param_groups[0]["lr"],
            "train_seconds": self._train_seconds,
            "wall_seconds": self._wall_seconds(),
            "window": list(self._window),
            "return_mean": self._eval_return if self._config.eval_every else self._return_mean(),
            "resumes": self._resumes,
            "exact_resume": self._is_exact,
        }
        return Snapshot(weights, optimizer, in_flight, trail, self._log.view(), values)

    def _return_mean(self) -> float | None:
        return float(np.mean(self._window)) if self._window else None

    def _has_reached_goal(self) -> bool:
        goal = self._config.stop_at_return
        return goal is not None and len(self._window) == RETURN_WINDOW and (self._return_mean() or 0.0) >= goal

    def _wall_seconds(self) -> float:
        return self._wall_before + time.perf_counter() - self._wall_started

    @timed("report")
    def _exchange(self, rollout: Rollout, stats: Stats) -> Report:
        last = rollout.episodes[-RETURN_WINDOW:]
        n, r, r2, d, d2 = stats.value_moments
        told = _Told(
            stats.policy_loss,
            stats.value_loss,
            -stats.entropy,
            stats.approx_kl,
            stats.clip_fraction,
            stats.grad_norm,
            rollout.seconds,
            stats.seconds,
            rollout.env_steps,
            *(n, r, r2, d, d2),
            len(rollout.episodes),
            sum(e.ret for e in rollout.episodes),
            sum(e.length for e in rollout.episodes),
            bool(signals.name),
            rollout.env_restarts,
            len(last),
        )
        episodes = torch.zeros(RETURN_WINDOW, 4, dtype=torch.float64)
        if last:
            episodes[: len(last)] = torch.tensor([(e.t, e.env, e.ret, e.length) for e in last], dtype=torch.float64)
        more = (torch.tensor(told, dtype=torch.float64), episodes, rollout.moments)
        trail, (scalars, episodes, moments) = gather_trail(rollout.trail, more, self._ranks)
        return _report(scalars, episodes, trail, moments.sum(0))

    def finish(self, agent: Agent) -> Summary:
        """Test the agent and write what remains of the run; rank 0 does so, the others return what they know.

        Raises:
            StoppedBySignal: the run is not over: it was asked to stop, and has saved what it goes on from.
            NotAllWrittenError: the run is over, but something could not be written.
        """
        self._progress.close()
        if self._is_stopping:
            raise StoppedBySignal(f"stopped by {signals.name or 'a signal'}{self._checkpoints.said}")
        self._writes.do("the profile", profile.finish, self._ranks, self.dir)
        test = TestResult([], [])
        if self._leads:
            self._writes.do("policy.safetensors", save_policy, agent, self.dir)
            self._write(self._summary(test))  # the test may fail: what was trained is on record
            video_dir = str(self.dir / "test_videos") if self._config.capture_video else ""
            test = evaluate(Policy(agent), self._config.test_episodes, self._config.seed, video_dir=video_dir)
        summary = self._summary(test)
        if self._leads:
            self._write(summary)
            self._log_scalars({"Test/cumulative_reward": summary.test["return_mean"]})
            self._tell_end(summary)
        return summary

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool | None:
        """Close everything; where something could not be written and nothing worse happened, say so again."""
        if error is not None:
            self._end_failed(error)
        suppresses = super().__exit__(kind, error, trace)
        if error is None:
            self._writes.raise_if_incomplete()
        return suppresses

    def _write(self, summary: Summary) -> None:
        text = json.dumps(asdict(summary), indent=2, allow_nan=False)
        self._writes.do("summary.json", write_atomically, self.dir / "summary.json", (text + "\n").encode())

    def _summary(self, test: TestResult) -> Summary:
        return Summary(
            script=self._script,
            env_id=self._config.env_id,
            seed=self._config.seed,
            world_size=read_launch().world_size,
            total_timesteps=self._config.total_timesteps,
            env_steps=self.env_steps,
            updates=self._updates,
            gradient_steps=self._gradient_steps,
            wall_seconds=self._wall_seconds(),
            train_seconds=self._train_seconds,
            steps_per_second=self.env_steps / self._train_seconds,
            train_return_mean=self._return_mean(),
            train_return_episodes=len(self._window),
            resumes=self._resumes,
            exact_resume=self._is_exact,
            test=test.to_dict() if test.returns else {},
        )

    def _tell_end(self, summary: Summary) -> None:
        has_own = ":" in self._config.encoder or own_modules(self._agent.spec)
        lines = [
            f"trained {summary.env_steps:,} steps in {summary.train_seconds:.1f} s "
            f"({summary.steps_per_second:,.0f} steps/s)",
            f"tested  return {summary.test['return_mean']:.1f} +- {summary.test['return_std']:.1f} "
            f"over {summary.test['episodes']} episodes",
            f"summary {self.dir / 'summary.json'}",
            f"curves  tensorboard --logdir {self.dir}",
        ]
        if self._config.capture_video:
            lines.append(f"videos  {', '.join(filter(None, [self.video_dir, str(self.dir / 'test_videos')]))}")
        lines.append(f"again   python -m fabric_ppo evaluate {self.dir}{' --own-code' if has_own else ''}")
        say("\n".join(lines), sys.stdout)


@dataclass(frozen=True)
class Report:
    """An update as all ranks together saw it.

    `episodes` are the last ones of all ranks, in order; `in_flight` with `--overlap` the weights from before it.
    """

    metrics: dict[str, float]
    episodes: list[Episode]
    env_steps: int
    env_restarts: float
    is_asked_to_stop: bool
    trail: Trail
    moments: torch.Tensor
    in_flight: dict[str, torch.Tensor] = field(default_factory=dict)


class _Told(NamedTuple):
    """The numbers that a rank tells of an update; `n` to `d2` are `Stats.value_moments`."""

    policy_loss: float
    value_loss: float
    entropy_loss: float
    approx_kl: float
    clip_fraction: float
    grad_norm: float
    rollout_seconds: float
    update_seconds: float
    env_steps: float
    n: float
    r: float
    r2: float
    d: float
    d2: float
    num_episodes: float
    returns: float
    lengths: float
    is_asked_to_stop: float
    env_restarts: float
    num_shown: float


def _report(scalars: torch.Tensor, episodes: torch.Tensor, trail: Trail, moments: torch.Tensor) -> Report:
    """Merge what the ranks sent: `scalars [W, ...]`, each a `_Told`, and `episodes [W, RETURN_WINDOW, 4]`."""
    mean, total, most = (_Told(*of_all.tolist()) for of_all in (scalars.mean(0), scalars.sum(0), scalars.amax(0)))
    metrics = {
        "Loss/policy_loss": mean.policy_loss,
        "Loss/value_loss": mean.value_loss,
        "Loss/entropy_loss": mean.entropy_loss,
        "Info/approx_kl": mean.approx_kl,
        "Info/clip_fraction": mean.clip_fraction,
        "Info/grad_norm": mean.grad_norm,
        "Time/rollout_seconds": most.rollout_seconds,
        "Time/update_seconds": most.update_seconds,
    }
    variance = total.r2 / total.n - (total.r / total.n) ** 2
    if variance > 0:
        missed = total.d2 / total.n - (total.d / total.n) ** 2
        metrics["Info/explained_variance"] = 1 - missed / variance
    if total.num_episodes > 0:
        metrics["Rewards/rew_avg"] = total.returns / total.num_episodes
        metrics["Game/ep_len_avg"] = total.lengths / total.num_episodes
    counts = (round(_Told(*of_rank).num_shown) for of_rank in scalars.tolist())
    rows = [row for count, sent in zip(counts, episodes, strict=True) for row in sent[:count].tolist()]
    ended = sorted(Episode(int(t), int(env), ret, int(length)) for t, env, ret, length in rows)
    is_asked_to_stop = total.is_asked_to_stop > 0
    return Report(metrics, ended, round(total.env_steps), total.env_restarts, is_asked_to_stop, trail, moments)
