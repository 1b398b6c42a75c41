"""`imitate`: from demonstrations to a folder with a policy, which training starts from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fabric_ppo.agents.agent import Agent
from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.policy_file import save_policy, start_from
from fabric_ppo.config import Config
from fabric_ppo.config_arguments import json_text
from fabric_ppo.envs.frame_stack import num_frames
from fabric_ppo.envs.make import make_envs
from fabric_ppo.envs.space_text import format_space
from fabric_ppo.envs.spaces import EnvSpec, SpaceSpec, mask_paths, path_name
from fabric_ppo.fast.optimizers import named_optimizer
from fabric_ppo.ppo.behaviour_cloning import EpochResult, clone
from fabric_ppo.process.errors import ConfigError, flag
from fabric_ppo.process.files import write_atomically
from fabric_ppo.process.group import ALONE
from fabric_ppo.rollouts.demonstrations import Demonstrations, joined, read_demonstrations
from fabric_ppo.rollouts.minari_data import PREFIX, MinariDataset
from fabric_ppo.run.folder import CONFIG_FILE, IMITATION
from fabric_ppo.run.prepare import prepare_process
from fabric_ppo.run.resolve import resolve
from fabric_ppo.run.trackers.json_lines import METRICS_FILE


@dataclass(frozen=True)
class Imitation:
    """Result of imitating demonstrations.

    Attributes:
        config: the flags, with those of the demonstrations' environment.
        agent: trained on them.
        demonstrations: all of them.
        epochs: numbers of each epoch.
        validation: share of the episodes that was held out.
        seconds: that the training took.
    """

    config: Config
    agent: Agent
    demonstrations: Demonstrations
    epochs: list[EpochResult]
    validation: float
    seconds: float

    @property
    def best(self) -> int:
        """Number of the epoch whose weights are kept, from 0 up."""
        nlls = [each.validation_nll for each in self.epochs]
        return nlls.index(min(nlls)) if self.validation else len(nlls) - 1


def require_new_folder(out: Path) -> None:
    """Raise a ConfigError if `--out` is something else than a new or empty folder."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; a folder is expected")
    if out.is_dir() and any(out.iterdir()):
        what = "holds a run already" if (out / CONFIG_FILE).exists() else "is not empty"
        raise ConfigError(f"--out {out}: {what}; a new folder is expected")
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"--out {out}: cannot be written; another folder is expected")


def imitate(
    config: Config,
    given: Collection[str],
    sources: Sequence[str],
    epochs: int,
    validation: float,
    report: Callable[[int, EpochResult], None] = lambda epoch, result: None,
) -> Imitation:
    """Train an agent on demonstrations; nothing is written.

    Args:
        config: flags of the agent, its optimizer and its environment.
        given: fields that the user has given, on the command line or in a file.
        sources: `.npz` files of `--record`, and datasets `minari:ID`.
        epochs, validation, report: as of `clone`.

    Raises:
        ConfigError: demonstrations cannot be read, or do not fit the environment or each other.
        TrainingError: the loss is not finite any more.
    """
    config, demonstrations = load(config, given, sources)
    prepare_process(config, ALONE)
    agent = make_agent(demonstrations.spec, config)
    if config.init_from is not None:
        start_from(agent, config.init_from)
    started = time.perf_counter()
    optimizer = named_optimizer(agent.parameters(), config)
    results = clone(agent, demonstrations, optimizer, config, epochs, validation, report)
    return Imitation(config, agent, demonstrations, results, validation, time.perf_counter() - started)


def load(config: Config, given: Collection[str], sources: Sequence[str]) -> tuple[Config, Demonstrations]:
    """Read demonstrations, and return them with the flags of their environment; see `imitate`.

    The environment is made only where no file describes it, to learn its spaces.
    """
    if config.critic_keys:
        raise ConfigError(
            f"--critic-keys {config.critic_keys}: demonstrations have only what a policy sees, and --init-from of a "
            "training with --critic-keys takes no policy that was made without; do without them in both"
        )
    files = {source: read_demonstrations(Path(source)) for source in sources if not source.startswith(PREFIX)}
    datasets = {source: MinariDataset(source) for source in sources if source.startswith(PREFIX)}
    if files:
        source, first = next(iter(files.items()))
        _require_environment_of(source, first.spec, config, given)
        spec = _fitted(first.spec, config)
        config = replace(config, **_flags_of(spec))
    else:
        config, spec = _opened(config, given, list(datasets.values()))
    for source, each in files.items():
        _require_same(source, _fitted(each.spec, config), spec)
    for dataset in datasets.values():
        dataset.require_spaces(spec, config.obs_keys or "")
    found = [datasets[each].read(spec) if each in datasets else files[each] for each in sources]
    return config, replace(joined(found), spec=spec)


def _require_environment_of(source: str, spec: EnvSpec, config: Config, given: Collection[str]) -> None:
    """Raise a ConfigError for a flag that names another environment than a file's."""
    own = _flags_of(spec)
    flags = {"env_id": config.env_id, "env_kwargs": json_text(config.env_kwargs), "env_wrapper": config.env_wrapper}
    for name, value in flags.items():
        if name in given and (value or None) != own[name]:
            raise ConfigError(
                f"{flag(name)} {value}: {source} has {flag(name)} {own[name]}; without the flag it is that"
            )
    if "obs_keys" in given and config.obs_keys:
        keys, parts = config.obs_keys.split(","), (own["obs_keys"] or "").split(",")
        if not all(any(f"{part}.".startswith(f"{key}.") for key in keys) for part in parts):
            raise ConfigError(
                f"--obs-keys {config.obs_keys}: {source} has {own['obs_keys'] or 'no parts'}; all are taken"
            )


def _fitted(spec: EnvSpec, config: Config) -> EnvSpec:
    """Return an environment's spec with the way in which this agent's actions meet their bounds."""

    def fitted(space: SpaceSpec) -> SpaceSpec:
        if space.kind == "box":
            return replace(space, fit=config.action_bounds)
        return replace(space, parts=tuple((path, fitted(leaf)) for path, leaf in space.parts))

    return replace(spec, action=fitted(spec.action))


def _flags_of(spec: EnvSpec) -> dict[str, Any]:
    """Return the flags of an environment, with which training makes the same."""
    masks = mask_paths(spec)
    parts = [path_name(path) for path, _ in spec.observation.parts if path not in masks]
    return {
        "env_id": spec.env_id,
        "env_kwargs": spec.make_args or None,
        "env_preset": spec.wrapper if spec.is_atari else None,
        "env_wrapper": None if spec.is_atari else spec.wrapper or None,
        "obs_keys": ",".join(parts) or None,
        "frame_stack": num_frames(spec.observation),
    }


def _opened(config: Config, given: Collection[str], datasets: list[MinariDataset]) -> tuple[Config, EnvSpec]:
    """Return the flags, with the environment's id, and the spec of this environment, which is made once."""
    if "env_id" not in given:
        if not datasets[0].env_id:
            raise ConfigError(f"{datasets[0].name}: it does not say of which environment; --env-id ID is expected")
        config = replace(config, env_id=datasets[0].env_id)
    for each in datasets:
        if each.env_id and each.env_id != config.env_id:
            raise ConfigError(f"{each.name}: is of {each.env_id}, and not of {config.env_id}")
    config = resolve(config)
    envs = make_envs(replace(config, num_envs=1), 0, 1)
    envs.close()
    return config, envs.spec


def _require_same(source: str, theirs: EnvSpec, spec: EnvSpec) -> None:
    """Raise a ConfigError for demonstrations of another environment than the first ones."""
    if theirs == spec:
        return
    if theirs.env_id != spec.env_id:
        raise ConfigError(f"{source}: is of {theirs.env_id}, and the demonstrations before it of {spec.env_id}")
    texts = [f"{format_space(each.observation)} and {format_space(each.action)}" for each in (theirs, spec)]
    texts = texts if texts[0] != texts[1] else [str(theirs), str(spec)]
    raise ConfigError(f"{source}: its spaces are {texts[0]}, and those of the demonstrations before it {texts[1]}")


def write(imitation: Imitation, out: Path) -> None:
    """Write the folder: `config.yaml`, `metrics.jsonl`, `summary.json`, and last `policy.safetensors`.

    Raises:
        OSError: it cannot be written.
    """
    config = imitation.config
    out.mkdir(parents=True, exist_ok=True)
    values = yaml.safe_dump(config.to_dict(), sort_keys=False)
    write_atomically(out / CONFIG_FILE, f"# {IMITATION}\n{values}".encode())
    trained = len(imitation.demonstrations.rewards)
    lines = [
        {"step": trained * number, "update": number} | tagged(result)
        for number, result in enumerate(imitation.epochs, start=1)
    ]
    write_atomically(out / METRICS_FILE, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    summary = json.dumps(_summary(imitation), indent=2, allow_nan=False)
    write_atomically(out / "summary.json", f"{summary}\n".encode())
    save_policy(imitation.agent, out)


def tagged(result: EpochResult) -> dict[str, float]:
    """Return tag -> number of an epoch, without those of no validation."""
    return {f"Imitation/{name}": value for name, value in result._asdict().items() if value == value}


def _summary(imitation: Imitation) -> dict[str, Any]:
    """Return the values of `summary.json`."""
    config, demonstrations, best = imitation.config, imitation.demonstrations, imitation.best
    return {
        "script": "imitate",
        "env_id": config.env_id,
        "seed": config.seed,
        "env_steps": 0,
        "updates": len(imitation.epochs),
        "train_seconds": imitation.seconds,
        "demonstrations": {
            "episodes": demonstrations.num_episodes,
            "transitions": len(demonstrations.rewards),
            "validation": imitation.validation,
        },
        "best_epoch": best + 1,
        "best": {name.partition("/")[2]: value for name, value in tagged(imitation.epochs[best]).items()},
    }
