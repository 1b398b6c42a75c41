"""Where a run is at the end of an update: kept in memory, written as a checkpoint, gone on from."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fabric_ppo.checkpoint import Checkpoint, newest_intact, save_checkpoint
from fabric_ppo.config import MAY_DIFFER, Config
from fabric_ppo.distributed import Ranks
from fabric_ppo.errors import ConfigError, flag
from fabric_ppo.launch import read_launch, tell
from fabric_ppo.loggers import Writes
from fabric_ppo.profile import timed
from fabric_ppo.replay import Array, LogView, PastEpisode, Trail
from fabric_ppo.spaces import ActionConverter, SpaceSpec

_LIBRARIES = ("torch", "numpy", "gymnasium", "lightning", "mujoco", "Box2D", "ale_py", "minigrid", "envpool")
_SECONDS_BETWEEN = 60.0
_LOCK_SECONDS = 5


class HasState(Protocol):
    """An optimizer, or what stands for one that lives in another process."""

    param_groups: list[dict[str, Any]]

    def state_dict(self) -> dict[str, Any]:
        """As `torch.optim.Optimizer.state_dict`."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`."""


def optimizer_tensors(optimizer: HasState) -> dict[str, Tensor]:
    """An optimizer's state, parameter by parameter: `0.exp_avg`, ..."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def load_optimizer(optimizer: HasState, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value.clone()  # an optimizer takes over what it is given
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


@dataclass(frozen=True)
class Snapshot:
    """A run at the end of an update, as all ranks together are; nothing in it changes afterwards.

    Attributes:
        weights, optimizer: by name.
        in_flight: the weights that the rollout in progress is collected with, where rollouts and updates overlap.
        trail: of the environments of all ranks.
        log: their actions since their resets.
        values: everything else, as JSON has it.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    in_flight: dict[str, Tensor]
    trail: Trail
    log: LogView
    values: dict[str, Any]

    def to_checkpoint(self, more: dict[str, Any]) -> Checkpoint:
        """What goes into the file, with `more` values."""
        trail = self.trail
        env = {
            "obs": trail.obs,
            "returns": trail.returns,
            "lengths": trail.lengths,
            "discounted": trail.discounted,
            "memory": trail.memory,
            "actions": self.log.actions(),
            "numbers": self.log.numbers,
            "logged": self.log.lengths,
            "states": np.frombuffer(b"".join(trail.states), np.uint8),
        }
        tensors = {f"env.{name}": torch.from_numpy(np.array(array)) for name, array in env.items()}
        for group in ("weights", "optimizer", "in_flight"):
            tensors |= {f"{group}.{name}": value for name, value in getattr(self, group).items()}
        return Checkpoint(tensors, self.values | {"state_sizes": [len(state) for state in trail.states]} | more)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor in memory of its own, on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


_NUMBER = (int, float)
_VALUES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("script", "env_spec", "agent"), (str,)),
    **dict.fromkeys(("config", "surroundings"), (dict,)),
    **dict.fromkeys(("world_size", "update", "env_steps", "gradient_steps", "resumes"), (int,)),
    **dict.fromkeys(("train_seconds", "wall_seconds", "learning_rate"), _NUMBER),
    **dict.fromkeys(("return_mean", "best_return"), (*_NUMBER, type(None))),
    **dict.fromkeys(("window", "state_sizes"), (list,)),
    "exact_resume": (bool,),
}
_MOST = 2**53


def require_values(values: Any) -> None:
    """See that a checkpoint's values are such as `Snapshot` has them; whoever made the file knows its checksum too.

    Raises:
        ValueError: they are not; says which.
    """
    if not isinstance(values, dict):
        raise ValueError("it holds no values")
    for name, kinds in _VALUES.items():
        if name not in values or type(values[name]) not in kinds:
            raise ValueError(f"its {name} is of another kind")
    lists = {"window": _NUMBER, "state_sizes": (int,)}
    for name, kinds in lists.items():
        if not all(type(each) in kinds for each in values[name]):
            raise ValueError(f"its {name} is of another kind")
    alone = [each for name, each in values.items() if name in _VALUES and type(each) in _NUMBER]
    if not all(-_MOST < each < _MOST for each in [*alone, *values["window"], *values["state_sizes"]]):
        raise ValueError("it holds numbers that are not finite or too large")
    if values["update"] < 1 or min(values["env_steps"], values["resumes"], values["world_size"]) < 0:
        raise ValueError("its counts cannot be")


def require_tensors(checkpoint: Checkpoint, agent: nn.Module, overlap: bool, env: Mapping[str, Tensor]) -> None:
    """See that a checkpoint's tensors have the names, types and shapes that `Snapshot` gives them, and are finite.

    Args:
        checkpoint: whose values have been checked.
        agent: what they are for.
        overlap: whether rollouts and updates overlap.
        env: what `obs`, `memory` and `actions` of all environments are like; the steps of `actions` may be any number.

    Raises:
        ValueError: they do not fit; says which.
    """
    weights = agent.state_dict()
    flat = torch.cat([parameter.detach().flatten() for parameter in agent.parameters()])
    counts = torch.zeros(env["obs"].shape[0], dtype=torch.int64)
    expected = {f"weights.{name}": tensor for name, tensor in weights.items()}
    expected |= {f"in_flight.{name}": tensor for name, tensor in weights.items() if overlap}
    expected |= {"optimizer.0.step": torch.zeros(()), "optimizer.0.exp_avg": flat, "optimizer.0.exp_avg_sq": flat}
    expected |= {f"env.{name}": counts for name in ("lengths", "numbers", "logged")}
    expected |= {f"env.{name}": counts.double() for name in ("returns", "discounted")}
    expected |= {f"env.{name}": tensor for name, tensor in env.items()}
    expected["env.states"] = torch.zeros(sum(checkpoint.values["state_sizes"]), dtype=torch.uint8)
    tensors = checkpoint.tensors
    if odd := sorted(tensors.keys() ^ expected.keys()):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in expected else 'unknown'}")
    for name, tensor in tensors.items():
        shape = (*tensor.shape[:1], *expected[name].shape[1:]) if name == "env.actions" else expected[name].shape
        if tensor.dtype != expected[name].dtype or tensor.shape != shape:
            raise ValueError(f"{name} has another type or shape")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds numbers that are not finite")
    numbers, lengths, logged = (tensors[f"env.{name}"] for name in ("numbers", "lengths", "logged"))
    within = bool((logged <= len(tensors["env.actions"])).all()) and bool((logged >= -1).all())
    if not within or bool((lengths < 0).any()) or bool((numbers < 0).any()) or bool((numbers >= 2**32).any()):
        raise ValueError("its counts of episodes or steps cannot be")
    sizes = checkpoint.values["state_sizes"]
    if any(size < 0 for size in sizes) or len(sizes) not in (0, len(counts)):
        raise ValueError("its state_sizes do not fit")


def past_episodes(checkpoint: Checkpoint, first_env: int, num_envs: int, action: SpaceSpec) -> list[PastEpisode]:
    """The episodes that were in progress, of the environments from global id `first_env` on."""
    env = {name: tensor.numpy() for name, tensor in checkpoint.under("env.").items()}
    ends = np.cumsum(checkpoint.values["state_sizes"], dtype=int).tolist()
    states = [env["states"][start:stop].tobytes() for start, stop in zip([0, *ends], ends, strict=False)]
    to_env, episodes = ActionConverter(action), []
    for index in range(first_env, first_env + num_envs):
        logged = int(env["logged"][index])
        taken = env["actions"][len(env["actions"]) - logged :, index] if logged >= 0 else None
        drawn_dtype = np.float32 if action.kind == "box" else np.int64
        actions = None if taken is None else to_env(taken.astype(drawn_dtype))
        place = (
            env["obs"][index],
            float(env["returns"][index]),
            int(env["lengths"][index]),
            float(env["discounted"][index]),
            env["memory"][index],
        )
        episodes.append(PastEpisode(int(env["numbers"][index]), actions, *place, states[index] if states else b""))
    return episodes


def action_arrays(checkpoint: Checkpoint) -> list[Array]:
    """What an ActionLog goes on from: numbers, lengths, actions."""
    return [checkpoint.tensors[f"env.{name}"].numpy() for name in ("numbers", "logged", "actions")]


def gather_trail(trail: Trail, more: Sequence[Tensor], ranks: Ranks) -> tuple[Trail, list[Tensor]]:
    """The trail of all ranks, and `more` of each rank, `[W, ...]`, in one collective (three with `states`)."""
    by_env = (trail.obs, trail.returns, trail.lengths, trail.discounted, trail.memory)
    arrays = (trail.actions, trail.ended, *by_env)
    parts = [torch.from_numpy(np.ascontiguousarray(each)) for each in arrays]
    *gathered, have_states = ranks.gather_all([*parts, *more, torch.tensor(bool(trail.states))])
    parts, others = gathered[: len(arrays)], gathered[len(arrays) :]
    together = Trail.of_ranks(*(part.cpu().numpy() for part in parts))
    if have_states.all():
        together = replace(together, states=_gather_bytes(trail.states, ranks))
    return together, [other.cpu() for other in others]


def _gather_bytes(texts: Sequence[bytes], ranks: Ranks) -> list[bytes]:
    """What each rank has, as many on each, one after the other."""
    sizes = ranks.gather(torch.tensor([len(text) for text in texts])).tolist()
    own = b"".join(texts).ljust(max(sum(row) for row in sizes) or 1)
    gathered = ranks.gather(torch.frombuffer(bytearray(own), dtype=torch.uint8)).tolist()
    all_texts = []
    for row, each in zip(sizes, gathered, strict=True):
        ends = np.cumsum(row).tolist()
        all_texts += [bytes(each[start:stop]) for start, stop in zip([0, *ends], ends, strict=False)]
    return all_texts


class Checkpoints:
    """On rank 0, the newest snapshot, kept in memory, and the files that are made of it.

    Attributes:
        flushes: what to call before a file is written, so that nothing that was logged is younger than it.
        said: where the last file lies, for a message.
    """

    def __init__(self, folder: Path, config: Config, writes: Writes) -> None:
        """Write into `folder` as often as `config` says."""
        self._folder, self._config, self._writes = folder, config, writes
        self._newest: Snapshot | None = None
        self._written_update, self._written_at = 0, time.monotonic()
        self._best_return: float | None = None
        self._lock = threading.Lock()
        self.flushes: list[Callable[[], object]] = []
        self.said = "; nothing to save before the first update"

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Count on from a checkpoint."""
        self._written_update, self._best_return = checkpoint.values["update"], checkpoint.values["best_return"]
        self._say(self._written_update)

    def keep(self, snapshot: Snapshot) -> None:
        """Have `save` write this one."""
        self._newest = snapshot

    def is_due(self, update: int, eval_return: float | None) -> bool:
        """Whether it is time for a file, or an evaluation was the best so far."""
        if eval_return is not None and (self._best_return is None or eval_return > self._best_return):
            return True
        every = self._config.checkpoint_every
        return update % every == 0 if every else time.monotonic() - self._written_at >= _SECONDS_BETWEEN

    @timed("checkpoint")
    def save(self) -> str:
        """Write the newest snapshot, unless that has been done; `said`. May be called from another thread."""
        with self._lock:
            snapshot = self._newest
            if snapshot is None or snapshot.values["update"] == self._written_update:
                return self.said
            mean = snapshot.values["return_mean"]
            is_best = self._best_return is None or (mean is not None and mean > self._best_return)
            best = mean if is_best else self._best_return
            update, keep = snapshot.values["update"], self._config.keep_checkpoints
            for flush in self.flushes:
                self._writes.do("TensorBoard's events", flush)
            content = snapshot.to_checkpoint({"best_return": best}).to_bytes()
            self._written_at = time.monotonic()
            if self._writes.do("a checkpoint", save_checkpoint, self._folder, update, content, keep, is_best):
                self._written_update, self._best_return = update, best
                self._say(update)
            return self.said

    def _say(self, update: int) -> None:
        path = self._folder / f"update_{update}.ckpt"
        self.said = f"; saved {path}: go on with --resume --run-dir {self._folder.parent}"


def lock_folder(run_dir: Path) -> Callable[[], None]:
    """Keep a second run out of a folder, until the function that is returned is called or the process ends.

    Raises:
        ConfigError: another process trains there, or nothing can be written there.
    """
    try:
        lock = (run_dir / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"--run-dir {run_dir}: cannot be written ({error.strerror})") from None
    for attempt in range(_LOCK_SECONDS + 1):
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock.close
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return lock.close  # a file system without locks
            if attempt < _LOCK_SECONDS:
                time.sleep(1)
    raise ConfigError(f"--run-dir {run_dir}: another process trains there")


@functools.cache
def _digest_of_code() -> str:
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def surroundings() -> dict[str, Any]:
    """What the last bits of a run depend on besides its flags."""
    versions = {name: sys.modules[name].__version__ for name in _LIBRARIES if name in sys.modules}
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return versions | {
        "fabric_ppo": _digest_of_code(),
        "processor": processor,
        "threads": torch.get_num_threads(),
        "ranks": read_launch().world_size,
    }


def find_checkpoint(run_dir: Path, ranks: Ranks) -> Checkpoint | None:
    """The checkpoint to go on from, the same on all ranks: rank 0 chooses and sends it.

    Raises:
        ConfigError: there are checkpoints, and none is whole.
    """
    content = b""
    if ranks.rank == 0:
        try:
            found, refused = newest_intact(run_dir / "checkpoints")
            content = b"+" + found
            for each in refused:
                tell(f"not used: {each}")
        except ConfigError as error:
            content = b"-" + str(error).encode()
    content = from_rank_zero(content, ranks)
    if content[:1] == b"-":
        raise ConfigError(content[1:].decode())
    return Checkpoint.from_bytes(content[1:]) if len(content) > 1 else None


def from_rank_zero(content: bytes, ranks: Ranks) -> bytes:
    """What rank 0 calls this with (two collectives)."""
    if ranks.size == 1:
        return content
    size = int(ranks.gather(torch.tensor([len(content)]))[0].item())
    padded = torch.frombuffer(bytearray(content[:size].ljust(size)), dtype=torch.uint8)
    return bytes(ranks.gather(padded)[0].cpu().numpy())


def require_same_run(config: Config, script: str, world_size: int, values: Mapping[str, Any]) -> None:
    """Hold the flags of a resumed run against those that it was started with.

    Another number of ranks is fine with shared data, as long as all ranks together have the same environments and the
    same minibatches.

    Raises:
        ConfigError: they differ where they must not; names the flags.
    """
    if values["script"] != script:
        raise ConfigError(f"--resume: the run was started with {values['script']}, this is {script}")
    # what the run was not asked, for its version had no such flag, is the flag's default
    before, now = type(config)().to_dict() | dict(values["config"]), config.to_dict()
    if now["total_timesteps"] < before["total_timesteps"]:
        raise ConfigError(
            f"--total-timesteps {now['total_timesteps']}: the run had {before['total_timesteps']}; "
            "that or more is expected"
        )
    per_rank = _per_rank_flags(script, values["world_size"], world_size, config.share_data)
    may_differ = set(MAY_DIFFER)
    if "envpool" in (before.get("env_backend"), now["env_backend"]):
        may_differ.remove("env_backend")  # EnvPool's episodes are others than Gymnasium's
    differing = []
    for name in now:
        factors = per_rank.get(name, (1, 1))
        same = (
            before.get(name) == now[name] if factors == (1, 1) else before[name] * factors[0] == now[name] * factors[1]
        )
        if name not in may_differ and not same:
            differing.append(f"{flag(name)} {now[name]} (the run has {before.get(name)})")
    if differing:
        raise ConfigError(f"--resume: {', '.join(differing)}: the run's own values are expected")


def _per_rank_flags(script: str, before: int, now: int, share_data: bool) -> dict[str, tuple[int, int]]:
    """Flags that count per rank, with the ranks that they counted for and those that they count for now."""
    if before == now:
        return {}
    if not share_data:
        raise ConfigError(f"--resume: the run has {before} processes, these are {now}: only --share-data allows that")
    if script == "fabric_decoupled":
        return {"per_rank_batch_size": (before - 1, now - 1)}
    return {name: (before, now) for name in ("num_envs", "per_rank_batch_size")}
