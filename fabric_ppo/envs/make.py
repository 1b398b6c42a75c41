"""The choice of a backend for a rank's environments."""

from __future__ import annotations

from fabric_ppo.config import Config
from fabric_ppo.config_arguments import json_text
from fabric_ppo.config_info_keys import info_keys_of
from fabric_ppo.envs.contract import EnvSettings
from fabric_ppo.envs.tensor_contract import Envs
from fabric_ppo.envs.torch_settings import torch_settings_kept
from fabric_ppo.process.errors import ConfigError, DoesNotRenderError
from fabric_ppo.process.launch import cores_per_rank


def make_envs(config: Config, rank: int, num_ranks: int, video_dir: str = "", device: str = "cpu") -> Envs:
    """Make this rank's environments, whose global ids start at `rank * num_envs`.

    Args:
        config: the run's configuration.
        rank: place among the ranks that have environments.
        num_ranks: how many have.
        video_dir: where global environment 0 is recorded; empty for no video.
        device: name of the device where functional environments compute.

    Raises:
        ConfigError: the environment cannot be made, or has a space that is not supported.
    """
    settings = EnvSettings(
        env_id=config.env_id,
        seed=config.seed,
        num_envs=config.num_envs,
        first_env=rank * config.num_envs,
        total_envs=num_ranks * config.num_envs,
        video_dir=video_dir,
        timeout=config.env_timeout,
        restart=config.restart_envs,
        start_method=config.env_start_method,
        num_threads=config.num_threads or cores_per_rank(),
        action_bounds=config.action_bounds,
        env_wrapper=config.env_wrapper or config.env_preset or "",
        obs_keys=config.obs_keys or "",
        critic_keys=config.critic_keys or "",
        env_kwargs=json_text(config.env_kwargs),
        frame_stack=config.frame_stack,
        info_keys=info_keys_of(config.info_keys),
    )
    with torch_settings_kept():
        return _make_backend(config, settings, device)


def _make_backend(config: Config, settings: EnvSettings, device: str) -> Envs:
    # each backend imports what it needs: EnvPool, for instance, may be missing
    if config.env_backend == "envpool":
        from fabric_ppo.envs.envpool_envs import EnvPoolEnvs

        return EnvPoolEnvs(settings)
    if config.env_backend == "vector":
        from fabric_ppo.envs.batched import make_tensor_envs

        made = make_tensor_envs(settings, device)
        if config.capture_video and not made.can_render:
            made.close()
            raise ConfigError(f"--capture-video: {DoesNotRenderError(config.env_id, 'rgb_array')}")
        return made
    if config.env_backend == "async":
        from fabric_ppo.envs.async_envs import AsyncEnvs

        return AsyncEnvs(settings)
    from fabric_ppo.envs.sync_envs import SyncEnvs

    return SyncEnvs(settings)
