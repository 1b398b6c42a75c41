"""Lines that are printed when a run begins: its folder, environment, agent and length."""

from __future__ import annotations

from pathlib import Path

from fabric_ppo.agents.agent import Agent
from fabric_ppo.config import Config, DecoupledConfig
from fabric_ppo.envs.space_text import format_space
from fabric_ppo.process.devices import count_gpus
from fabric_ppo.process.launch import read_launch


def opening_lines(config: Config, run_dir: Path, agent: Agent, num_ranks: int, first_update: int) -> str:
    """Return the text that is printed when a run begins.

    Args:
        config: the run's configuration.
        run_dir: the run's folder.
        agent: the agent, on its device.
        num_ranks: number of ranks with environments.
        first_update: updates that a resumed run has done before; else 0.
    """
    spec, count = agent.spec, sum(each.numel() for each in agent.parameters())
    ranks = f" x {num_ranks} ranks" if num_ranks > 1 else ""
    per_update = config.num_steps * config.num_envs * num_ranks
    begins = f", begins after update {first_update}" if first_update else ""
    spaces = f"observations {format_space(spec.observation)}, actions {format_space(spec.action)}"
    return "\n".join(
        (
            f"run     {run_dir}",
            f"env     {spec.env_id}: {spaces}",
            f"agent   {count:,} parameters on {_devices(config, agent)}",
            f"updates {config.num_updates(num_ranks):,} of {per_update:,} transitions "
            f"({config.num_steps} steps x {config.num_envs} environments{ranks}){begins}",
        )
    )


def _devices(config: Config, agent: Agent) -> str:
    """Return the device that trains; with a player and trainers, the devices of both.

    If a GPU is there but not used, it names the flag for it.
    """
    devices = {agent.device.type}
    text = str(agent.device)
    if isinstance(config, DecoupledConfig):
        trainers, kind = read_launch().world_size - 1, "cuda" if config.cuda else "cpu"
        text, devices = f"{text} (player) and {kind} ({trainers} trainer{'s' * (trainers > 1)})", devices | {kind}
    flag = "fabric run --accelerator=cuda" if type(config) is Config else "--cuda"
    return f"{text}; {flag} trains on the GPU" if devices == {"cpu"} and count_gpus() else text
