"""The programs: how each is started on a piece of work, and how it tells what it did."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.install import CLEANRL, LEANRL, LIGHTNING_EXAMPLE, ROOT, python_of, why_missing
from benchmarks.workloads import Work

PEERS = ROOT / "benchmarks" / "peers"
OURS = ("torch", "lightning", "gymnasium", "numpy")


@dataclass(frozen=True)
class Counted:
    """Work that a program reports."""

    env_steps: int
    gradient_steps: int
    train_seconds: float | None
    return_mean: float | None


@dataclass(frozen=True)
class Program:
    """`command(work, seed, folder)` starts it, with `folder` to write to; `environment` is its own one, or ours.

    `needs` is a package, `source` a folder, without which it cannot run.
    """

    command: Callable[[Work, int, Path], list[str]]
    environment: str | None = None
    packages: tuple[str, ...] = OURS
    needs: str | None = None
    source: Path | None = None

    def why_not(self, work: Work) -> str:
        """Why it cannot run here; empty if it can."""
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        if self.source is not None and not self.source.is_dir():
            return f"its folder is not in {self.source.relative_to(ROOT)}"
        if work.preset and not Path(work.preset).is_file():
            return f"{work.preset}: no such file"
        return why_missing(self.environment) if self.environment is not None else ""

    def versions(self) -> dict[str, str]:
        """Of the packages that matter."""
        if self.environment is None:
            return {name: importlib.metadata.version(name) for name in self.packages}
        told = "import sys, json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
        args = [str(python_of(self.environment)), "-c", told, *self.packages]
        versions: dict[str, str] = json.loads(subprocess.check_output(args, text=True))
        return versions


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _shared_flags(work: Work, seed: int, vf_coef: float) -> list[str]:
    """Return the flags that our scripts and Lightning's example, from which they grew, both take."""
    values = {
        "seed": seed,
        "env-id": work.env_id,
        "total-timesteps": work.env_steps,
        "num-envs": work.num_envs,
        "num-steps": work.num_steps,
        "per-rank-batch-size": work.batch_size,
        "update-epochs": work.epochs,
        "learning-rate": work.learning_rate,
        "gamma": work.gamma,
        "gae-lambda": work.gae_lambda,
        "ent-coef": work.ent_coef,
        "vf-coef": vf_coef,
        "activation-function": "tanh",
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))] + ["--ortho-init"]


def _our_flags(work: Work, seed: int, folder: Path) -> list[str]:
    """Flags of our scripts; their other defaults are those of the other programs, or stay as they come."""
    where = ["--run-dir", str(folder / "run")]
    if work.stop_at_return is not None:
        where += ["--stop-at-return", str(work.stop_at_return)]
    if work.preset:
        return ["--config", str(Path(work.preset).resolve()), "--env-id", work.env_id, "--seed", str(seed), *where]
    if work.normalize:
        where += ["--normalize-observations", "--normalize-rewards"]
    if work.atari:
        where += ["--env-preset", "atari", "--shared-trunk", "--hidden-sizes", "64", "--test-episodes", "0"]
    # our coefficient is of half the squared error, the others' 0.5 of all of it
    flags = [*_shared_flags(work, seed, vf_coef=1.0), "--clip-coef", str(work.clip_coef), "--no-anneal-lr"]
    return [*flags, *where]


def _torchrun(ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]


def torch(work: Work, seed: int, folder: Path) -> list[str]:
    """`train_torch.py`, without a launcher on one rank."""
    launcher = [sys.executable] if work.ranks == 1 else _torchrun(work.ranks)
    return [*launcher, str(ROOT / "train_torch.py"), *_our_flags(work, seed, folder)]


def torch_envpool(work: Work, seed: int, folder: Path) -> list[str]:
    """`train_torch.py` with EnvPool's environments."""
    return [*torch(work, seed, folder), "--env-backend", "envpool"]


def torch_tensor(work: Work, seed: int, folder: Path) -> list[str]:
    """`train_torch.py` with the environment as tensor code."""
    return [*torch(work, seed, folder), "--env-id", f"tensor/{work.env_id}"]


def torch_tensor_share(work: Work, seed: int, folder: Path) -> list[str]:
    """The same with shared data."""
    return [*torch_tensor(work, seed, folder), "--share-data"]


def torch_envpool_trunk(work: Work, seed: int, folder: Path) -> list[str]:
    """The same with hidden layers that policy and value share."""
    return [*torch_envpool(work, seed, folder), "--shared-trunk"]


def _fabric_run(script: Path, ranks: int, *flags: str) -> list[str]:
    where = ["--accelerator=cpu", f"--devices={ranks}", f"--main-port={_free_port()}"]
    return [sys.executable, "-m", "lightning.fabric.cli", *where, *flags, str(script)]


def fabric(work: Work, seed: int, folder: Path) -> list[str]:
    """`train_fabric.py`, without a launcher on one rank."""
    one = [sys.executable, str(ROOT / "train_fabric.py")]
    launcher = one if work.ranks == 1 else _fabric_run(ROOT / "train_fabric.py", work.ranks, "--strategy=ddp")
    return [*launcher, *_our_flags(work, seed, folder)]


def decoupled(work: Work, seed: int, folder: Path) -> list[str]:
    """`train_fabric_decoupled.py`."""
    return [*_fabric_run(ROOT / "train_fabric_decoupled.py", work.ranks), *_our_flags(work, seed, folder)]


def decoupled_overlap(work: Work, seed: int, folder: Path) -> list[str]:
    """`train_fabric_decoupled.py --overlap`."""
    return [*decoupled(work, seed, folder), "--overlap"]


def decoupled_overlap_envpool(work: Work, seed: int, folder: Path) -> list[str]:
    """`train_fabric_decoupled.py --overlap` with EnvPool's environments."""
    return [*decoupled_overlap(work, seed, folder), "--env-backend", "envpool"]


def decoupled_overlap_tensor(work: Work, seed: int, folder: Path) -> list[str]:
    """The same with the environment as tensor code."""
    return [*decoupled_overlap(work, seed, folder), "--env-id", f"tensor/{work.env_id}"]


def decoupled_overlap_envpool_trunk(work: Work, seed: int, folder: Path) -> list[str]:
    """The same with hidden layers that policy and value share."""
    return [*decoupled_overlap_envpool(work, seed, folder), "--shared-trunk"]


def _lightning_example(script: str, work: Work, seed: int) -> list[str]:
    return [str(LIGHTNING_EXAMPLE / script), *_shared_flags(work, seed, vf_coef=0.5)]


def lightning_example(work: Work, seed: int, folder: Path) -> list[str]:
    """The example's raw PyTorch script; it writes to the working directory."""
    runner = str(PEERS / "run_script.py")
    return [*_torchrun(work.ranks), runner, *_lightning_example("train_torch.py", work, seed)]


def lightning_example_decoupled(work: Work, seed: int, folder: Path) -> list[str]:
    """The example's decoupled script; it writes to the working directory."""
    words = _fabric_run(PEERS / "run_script.py", work.ranks)
    return [*words, *_lightning_example("train_fabric_decoupled.py", work, seed)]


def torch_envpool_share(work: Work, seed: int, folder: Path) -> list[str]:
    """The same, with the rows of all ranks shared."""
    return [*torch_envpool(work, seed, folder), "--share-data"]


def _peer_flags(work: Work, seed: int) -> list[str]:
    """Return the flags of the scripts in `peers/` that are ours."""
    values = {
        "env-id": work.env_id,
        "total-timesteps": work.env_steps,
        "num-envs": work.num_envs,
        "num-steps": work.num_steps,
        "batch-size": work.batch_size,
        "epochs": work.epochs,
        "learning-rate": work.learning_rate,
        "gamma": work.gamma,
        "gae-lambda": work.gae_lambda,
        "ent-coef": work.ent_coef,
        "clip-coef": work.clip_coef,
        "seed": seed,
    }
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return [*flags, *(["--normalize"] if work.normalize else [])]


def _stable_baselines3(script: str, work: Work, seed: int, folder: Path) -> list[str]:
    flags = [*_peer_flags(work, seed), "--log-dir", str(folder)]
    if work.stop_at_return is not None:
        flags += ["--stop-at-return", str(work.stop_at_return)]
    return [str(python_of("stable-baselines3")), str(PEERS / script), *flags]


def stable_baselines3(work: Work, seed: int, folder: Path) -> list[str]:
    """Stable-Baselines3's PPO."""
    return _stable_baselines3("run_sb3.py", work, seed, folder)


def sbx(work: Work, seed: int, folder: Path) -> list[str]:
    """SBX's PPO."""
    return _stable_baselines3("run_sbx.py", work, seed, folder)


def rejax(work: Work, seed: int, folder: Path) -> list[str]:
    """PPO of rejax, with gymnax's environment; it writes nothing."""
    assert work.stop_at_return is None
    return [str(python_of("rejax")), str(PEERS / "run_rejax.py"), *_peer_flags(work, seed)]


def skrl(work: Work, seed: int, folder: Path) -> list[str]:
    """PPO of skrl."""
    return _for_continuous_actions("skrl", work, seed, folder)


def tianshou(work: Work, seed: int, folder: Path) -> list[str]:
    """PPO of Tianshou 2."""
    return _for_continuous_actions("tianshou", work, seed, folder)


def torchrl(work: Work, seed: int, folder: Path) -> list[str]:
    """PPO of TorchRL's parts; it writes nothing."""
    return _for_continuous_actions("torchrl", work, seed, folder)


def _for_continuous_actions(name: str, work: Work, seed: int, folder: Path) -> list[str]:
    assert work.stop_at_return is None
    script = str(PEERS / f"run_{name}.py")
    return [str(python_of(name)), script, *_peer_flags(work, seed), "--log-dir", str(folder)]


def _cleanrl(script: Path, work: Work, seed: int) -> list[str]:
    """Return a script of CleanRL, or one grown from it, with the flags that all of them take."""
    assert work.stop_at_return is None
    values = {
        "env-id": work.env_id.removeprefix("ALE/"),  # EnvPool's name
        "seed": seed,
        "total-timesteps": work.env_steps,
        "num-envs": work.num_envs,
        "num-steps": work.num_steps,
        "num-minibatches": work.minibatches,
        "update-epochs": work.epochs,
        "learning-rate": work.learning_rate,
        "gamma": work.gamma,
        "gae-lambda": work.gae_lambda,
        "ent-coef": work.ent_coef,
        "clip-coef": work.clip_coef,
    }
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return [str(python_of("cleanrl")), str(PEERS / "run_script.py"), str(script), *flags, "--no-cuda", "--no-anneal-lr"]


def cleanrl(work: Work, seed: int, folder: Path) -> list[str]:
    """CleanRL's script for Atari, for continuous actions (which always normalises), or else its first one.

    It writes to the working directory.
    """
    of_vectors = "ppo_continuous_action.py" if work.normalize else "ppo.py"
    return _cleanrl(CLEANRL / ("ppo_atari_envpool.py" if work.atari else of_vectors), work, seed)


def leanrl(work: Work, seed: int, folder: Path) -> list[str]:
    """LeanRL's script for continuous actions, as CleanRL has it but for what it logs."""
    return _cleanrl(LEANRL / "ppo_continuous_action.py", work, seed)


def _sheeprl(environment: str, work: Work, seed: int) -> list[str]:
    """SheepRL's own benchmark configuration, with our numbers."""
    assert work.stop_at_return is None
    values = {
        "exp": "ppo_benchmarks",
        "seed": seed,
        "env.id": work.env_id,
        "env.num_envs": work.num_envs,
        "algo.total_steps": work.env_steps,
        "algo.rollout_steps": work.num_steps,
        "algo.per_rank_batch_size": work.batch_size,
        "algo.update_epochs": work.epochs,
        "algo.optimizer.lr": work.learning_rate,
        "algo.gamma": work.gamma,
        "algo.gae_lambda": work.gae_lambda,
        "algo.ent_coef": work.ent_coef,
        "fabric.devices": work.ranks,
        "checkpoint.every": 10 * work.env_steps,
    }
    if work.ranks > 1:
        values["fabric.strategy"] = "ddp"
    if work.decoupled:
        values["algo.name"] = "ppo_decoupled"
    flags = [f"{name}={value}" for name, value in values.items()]
    return [str(python_of(environment)), str(PEERS / "run_sheeprl.py"), *flags]


def sheeprl(work: Work, seed: int, folder: Path) -> list[str]:
    """SheepRL's coupled PPO; it writes to the working directory."""
    return _sheeprl("sheeprl", work, seed)


def sheeprl_decoupled(work: Work, seed: int, folder: Path) -> list[str]:
    """SheepRL's decoupled PPO, of its last release that had one."""
    return _sheeprl("sheeprl-decoupled", work, seed)


def _sample_factory(work: Work, seed: int, folder: Path) -> dict[str, Any]:
    """Return the flags that hold for all environments."""
    return {
        "env": work.env_id,
        "seed": seed,
        "train_dir": folder,
        "experiment": "run",
        "device": "cpu",
        "train_for_env_steps": work.env_steps - 1,
        "num_workers": 2,
        "rollout": work.num_steps,
        "batch_size": work.batch_size,
        "num_batches_per_epoch": work.rollout // work.batch_size,
        "num_epochs": work.epochs,
        "learning_rate": work.learning_rate,
        "gamma": work.gamma,
        "gae_lambda": work.gae_lambda,
        "exploration_loss_coeff": work.ent_coef,
        "ppo_clip_ratio": work.clip_coef,
        "max_grad_norm": 0.5,
        "use_rnn": False,
        "normalize_input": False,
        "normalize_returns": False,
        "with_wandb": False,
    }


def _sample_factory_command(values: dict[str, Any], *more: str) -> list[str]:
    flags = [f"--{name}={value}" for name, value in values.items()]
    return [str(python_of("sample-factory")), str(PEERS / "run_sample_factory.py"), *flags, *more]


def sample_factory(work: Work, seed: int, folder: Path) -> list[str]:
    """Sample Factory with two workers; it ends when it has learned from more transitions than it is told."""
    values = {"num_envs_per_worker": work.num_envs // 2, "nonlinearity": "tanh"}
    return _sample_factory_command(_sample_factory(work, seed, folder) | values, "--encoder_mlp_layers", "64", "64")


def sample_factory_envpool(work: Work, seed: int, folder: Path) -> list[str]:
    """The same on a game, with a pool of environments in each worker, as its example for Atari has it."""
    values = {
        "num_envs_per_worker": 1,
        "worker_num_splits": 1,
        "env_agents": work.num_envs // 2,
        "batched_sampling": True,
        "encoder_conv_architecture": "convnet_atari",
        "obs_scale": 255.0,
        "nonlinearity": "relu",
        "summaries_use_frameskip": False,  # else frames are counted, four for a transition
        "train_for_env_steps": max(work.env_steps - work.rollout, 1) - 1,  # it ends an update late
    }
    return _sample_factory_command(_sample_factory(work, seed, folder) | values)


PROGRAMS = {
    "torch": Program(torch),
    "torch-tensor": Program(torch_tensor),
    "torch-tensor-share": Program(torch_tensor_share),
    "decoupled-overlap-tensor": Program(decoupled_overlap_tensor),
    "torch-envpool": Program(torch_envpool, packages=(*OURS, "envpool"), needs="envpool"),
    "torch-envpool-share": Program(torch_envpool_share, packages=(*OURS, "envpool"), needs="envpool"),
    "torch-envpool-trunk": Program(torch_envpool_trunk, packages=(*OURS, "envpool"), needs="envpool"),
    "fabric": Program(fabric),
    "decoupled": Program(decoupled),
    "decoupled-overlap": Program(decoupled_overlap),
    "decoupled-overlap-envpool": Program(decoupled_overlap_envpool, packages=(*OURS, "envpool"), needs="envpool"),
    "decoupled-overlap-envpool-trunk": Program(
        decoupled_overlap_envpool_trunk, packages=(*OURS, "envpool"), needs="envpool"
    ),
    "lightning-example": Program(lightning_example, source=LIGHTNING_EXAMPLE),
    "lightning-example-decoupled": Program(lightning_example_decoupled, source=LIGHTNING_EXAMPLE),
    "stable-baselines3": Program(stable_baselines3, "stable-baselines3", ("stable-baselines3", "torch", "gymnasium")),
    "sbx": Program(sbx, "stable-baselines3", ("sbx-rl", "jax", "gymnasium")),
    "cleanrl": Program(cleanrl, "cleanrl", ("torch", "gymnasium", "numpy"), source=CLEANRL),
    "leanrl": Program(leanrl, "cleanrl", ("torch", "gymnasium", "numpy"), source=LEANRL),
    "rejax": Program(rejax, "rejax", ("rejax", "jax", "gymnax")),
    "skrl": Program(skrl, "skrl", ("skrl", "torch", "gymnasium")),
    "tianshou": Program(tianshou, "tianshou", ("tianshou", "torch", "gymnasium")),
    "torchrl": Program(torchrl, "torchrl", ("torchrl", "tensordict", "torch", "gymnasium")),
    "sheeprl": Program(sheeprl, "sheeprl", ("sheeprl", "torch", "lightning", "gymnasium")),
    "sheeprl-decoupled": Program(
        sheeprl_decoupled, "sheeprl-decoupled", ("sheeprl", "torch", "lightning", "gymnasium")
    ),
    "sample-factory": Program(sample_factory, "sample-factory", ("sample-factory", "torch", "gymnasium", "numpy")),
    "sample-factory-envpool": Program(
        sample_factory_envpool, "sample-factory", ("sample-factory", "torch", "gymnasium", "envpool")
    ),
}


def read_counts(folder: Path, output: str) -> Counted:
    """Read the work of the run in `folder`: our summary, or what the ranks of another program printed.

    Raises:
        ValueError: nothing was told, or ranks that train took different numbers of gradient steps.
    """
    summary = folder / "run" / "summary.json"
    if summary.exists():
        told = json.loads(summary.read_text())
        return Counted(told["env_steps"], told["gradient_steps"], told["train_seconds"], told["train_return_mean"])
    ranks: list[dict[str, Any]] = [
        json.loads(line) for line in output.splitlines() if line.startswith("{") and '"gradient_steps"' in line
    ]
    if not ranks:
        raise ValueError("it told no counts")
    steps = {rank["gradient_steps"] for rank in ranks} - {0}
    if len(steps) > 1:
        raise ValueError(f"its ranks took {' and '.join(map(str, sorted(steps)))} gradient steps")
    seconds = max((rank["train_seconds"] for rank in ranks if rank["train_seconds"] is not None), default=None)
    return Counted(
        sum(rank["env_steps"] for rank in ranks), max(steps, default=0), seconds, ranks[0].get("return_mean")
    )
