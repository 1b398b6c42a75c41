"""One training run: its folder, logs, checkpoints, resuming, summary.

This folder imports fast, ppo, rollouts, agents, envs, process and config. It does not change what an
agent learns.
"""
