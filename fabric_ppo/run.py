"""One training run: its folder, what is logged and shown, when it stops, and what it leaves behind."""

from __future__ import annotations

import atexit
import contextlib
import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from fabric_ppo.agent import Agent
from fabric_ppo.checkpoint import write_atomically
from fabric_ppo.config import Config
from fabric_ppo.distributed import Ranks, prepare_process
from fabric_ppo.evaluate import Policy, TestResult, evaluate, save_policy
from fabric_ppo.launch import ConfigError, is_rank_zero, read_launch, tell
from fabric_ppo.loggers import JsonLines
from fabric_ppo.progress import Progress
from fabric_ppo.rollout import Episode, Rollout
from fabric_ppo.update import Guard, Stats

RETURN_WINDOW = 100


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

    def test_metrics(self) -> dict[str, float]:
        """The test as scalars; none on ranks that did not test."""
        return {"Test/cumulative_reward": self.test["return_mean"]} if self.test else {}


def new_run_dir(config: Config, script: str) -> Path:
    """Where a run will lie; unless `--run-dir` names it, it is made at once, and goes again if it stays empty.

    Raises:
        ConfigError: `--run-dir` holds a run already.
    """
    if config.run_dir is not None:
        path = Path(config.run_dir)
        if is_rank_zero() and (path / "config.yaml").exists():
            raise ConfigError(f"--run-dir {config.run_dir}: holds a run already; a new folder is expected")
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

    Attributes:
        num_updates: how many updates the run has.
        dir: its folder; a run that cannot start leaves none.
        video_dir: where training videos go; empty for none.
        env_steps: transitions so far, over all ranks.
    """

    def __init__(self, config: Config, script: str, ranks: Ranks, run_dir: Path) -> None:
        """Prepare a run.

        Args:
            config: its configuration.
            script: which script runs, for the summary.
            ranks: those with environments.
            run_dir: from `new_run_dir`.

        Raises:
            ConfigError: not even one update.
        """
        super().__init__()
        self._wall_started = time.perf_counter()
        self._config, self._script, self._ranks = config, script, ranks
        self.dir = run_dir
        self.video_dir = str(run_dir / "train_videos") if config.capture_video else ""
        self.num_updates = config.num_updates(ranks.size)
        self._steps_per_update = config.num_steps * config.num_envs * ranks.size
        self.env_steps = self._updates = self._gradient_steps = 0
        self._train_seconds = 0.0
        self._window: deque[float] = deque(maxlen=RETURN_WINDOW)
        self._stopped = False
        prepare_process(config, ranks)

    def closing(self, resource: Any) -> Any:
        """Close `resource` when the run ends, however it ends."""
        self.callback(resource.close)
        return resource

    def updates(self, agent: Agent) -> Iterator[int]:
        """Make the folder and count the updates until the run is over; `agent` is what is trained."""
        self._guard = Guard(agent)
        leads = self._ranks.rank == 0
        total = self.num_updates * self._steps_per_update
        if leads:
            self.dir.mkdir(parents=True, exist_ok=True)
            values = yaml.safe_dump(self._config.to_dict(), sort_keys=False)
            write_atomically(self.dir / "config.yaml", values.encode())
            self._lines = self.closing(JsonLines(self.dir / "metrics.jsonl"))
            self._tell_remainder()
        self._progress = self.closing(Progress(total, enabled=leads))
        started = self._update_started = time.perf_counter()
        for update in range(self.num_updates):
            yield update
            self._train_seconds = time.perf_counter() - started
            if self._stopped:
                return

    def _tell_remainder(self) -> None:
        config = self._config
        per_update = config.num_steps if config.timestep_unit == "iteration" else self._steps_per_update
        counted = self.num_updates * per_update
        if counted < config.total_timesteps:
            updates = f"{self.num_updates} updates of {per_update}"
            tell(f"--total-timesteps {config.total_timesteps} is rounded down to {counted}: {updates}")

    def finish_update(
        self, rollout: Rollout, stats: Stats, learning_rate: float, extra: dict[str, float] | None = None
    ) -> dict[str, float]:
        """Agree with the other ranks on what happened (one collective), show it, and decide whether to stop.

        Returns:
            The update's scalars, true over all ranks, the same on each.

        Raises:
            TrainingError: something is not finite; the agent has the weights from before this update.
        """
        self._guard.check(stats, self._updates)
        report = self._exchange(rollout, stats)
        self._updates += 1
        self.env_steps += report.env_steps
        self._gradient_steps += stats.gradient_steps
        self._window.extend(episode.ret for episode in report.episodes)
        stop_at = self._config.stop_at_return
        mean = float(np.mean(self._window)) if self._window else None
        self._stopped = stop_at is not None and len(self._window) == RETURN_WINDOW and (mean or 0.0) >= stop_at
        now = time.perf_counter()
        speed = report.env_steps / (now - self._update_started)
        self._update_started = now
        metrics = report.metrics | {"Info/learning_rate": learning_rate, "Time/step_per_second": speed} | (extra or {})
        if self._ranks.rank == 0:
            self._lines.write({"step": self.env_steps, "update": self._updates} | metrics)
        self._progress.update(self.env_steps, mean, speed)
        return metrics

    def _exchange(self, rollout: Rollout, stats: Stats) -> _Report:
        means = (stats.policy_loss, stats.value_loss, -stats.entropy, stats.approx_kl, stats.clip_fraction)
        scalars = [*means, stats.grad_norm, rollout.seconds, stats.seconds, float(rollout.env_steps)]
        last = rollout.episodes[-RETURN_WINDOW:]
        sums = [
            float(len(rollout.episodes)),
            sum(e.ret for e in rollout.episodes),
            sum(e.length for e in rollout.episodes),
        ]
        episodes = torch.zeros(RETURN_WINDOW, 4, dtype=torch.float64)
        if last:
            episodes[: len(last)] = torch.tensor([(e.t, e.env, e.ret, e.length) for e in last], dtype=torch.float64)
        flat = torch.tensor([*scalars, *stats.value_moments, *sums, float(len(last))], dtype=torch.float64)
        gathered = self._ranks.gather(torch.cat([flat, episodes.flatten()])).cpu()
        return _report(gathered[:, : len(flat)], gathered[:, len(flat) :].view(-1, RETURN_WINDOW, 4))

    def finish(self, agent: Agent) -> Summary:
        """Test the agent and write what remains of the run; rank 0 does so, the others return what they know."""
        test = TestResult([], [])
        if self._ranks.rank == 0:
            self._progress.close()
            save_policy(agent, self.dir)
            self._write(self._summary(test))  # the test may fail: what was trained is on record
            video_dir = str(self.dir / "test_videos") if self._config.capture_video else ""
            test = evaluate(Policy(agent), self._config.test_episodes, self._config.seed, video_dir=video_dir)
        summary = self._summary(test)
        if self._ranks.rank == 0:
            self._write(summary)
            self._tell_end(summary)
        return summary

    def _write(self, summary: Summary) -> None:
        text = json.dumps(asdict(summary), indent=2, allow_nan=False)
        write_atomically(self.dir / "summary.json", (text + "\n").encode())

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
            wall_seconds=time.perf_counter() - self._wall_started,
            train_seconds=self._train_seconds,
            steps_per_second=self.env_steps / self._train_seconds,
            train_return_mean=float(np.mean(self._window)) if self._window else None,
            train_return_episodes=len(self._window),
            resumes=0,
            exact_resume=True,
            test=test.to_dict() if test.returns else {},
        )

    def _tell_end(self, summary: Summary) -> None:
        speed = f"{summary.steps_per_second:,.0f} steps/s"
        tested = f"{summary.test['return_mean']:.1f} +- {summary.test['return_std']:.1f}"
        print(f"trained {summary.env_steps:,} steps in {summary.train_seconds:.1f} s ({speed})")
        print(f"tested  return {tested} over {summary.test['episodes']} episodes")
        print(f"summary {self.dir / 'summary.json'}")
        print(f"curves  tensorboard --logdir {self.dir}")
        if self._config.capture_video:
            print(f"videos  {self.dir / 'train_videos'}, {self.dir / 'test_videos'}")
        print(f"again   python -m fabric_ppo evaluate {self.dir}", flush=True)


@dataclass(frozen=True)
class _Report:
    """An update as all ranks together saw it; `episodes` are the last ones of all ranks, in order."""

    metrics: dict[str, float]
    episodes: list[Episode]
    env_steps: int


def _report(scalars: torch.Tensor, episodes: torch.Tensor) -> _Report:
    """Merge what the ranks sent: `scalars [W, K]`, `episodes [W, RETURN_WINDOW, 4]`."""
    policy, value, entropy, kl, clipped, norm, *_ = scalars.mean(0).tolist()
    _, _, _, _, _, _, _, _, steps, n, r, r2, d, d2, count, returns, lengths, _ = scalars.sum(0).tolist()
    rollout_seconds, update_seconds = scalars[:, 6].max().item(), scalars[:, 7].max().item()
    metrics = {
        "Loss/policy_loss": policy,
        "Loss/value_loss": value,
        "Loss/entropy_loss": entropy,
        "Info/approx_kl": kl,
        "Info/clip_fraction": clipped,
        "Info/grad_norm": norm,
        "Time/rollout_seconds": rollout_seconds,
        "Time/update_seconds": update_seconds,
    }
    variance = r2 / n - (r / n) ** 2
    if variance > 0:
        metrics["Info/explained_variance"] = 1 - (d2 / n - (d / n) ** 2) / variance
    if count > 0:
        metrics |= {"Rewards/rew_avg": returns / count, "Game/ep_len_avg": lengths / count}
    rows = [row for rank, sent in enumerate(episodes) for row in sent[: int(scalars[rank, -1])].tolist()]
    ended = sorted(Episode(int(t), int(env), ret, int(length)) for t, env, ret, length in rows)
    return _Report(metrics, ended, round(steps))
