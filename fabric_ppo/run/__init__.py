"""One training run: its folder, logs, checkpoints, resuming, summary.

This room uses fast, ppo, rollouts, agents, envs, process and config. It changes nothing that is
learned.
"""
