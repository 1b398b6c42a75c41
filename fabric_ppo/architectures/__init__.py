"""Code of single architectures: the LightningModule, and player and trainers.

This room uses run, fast, ppo, rollouts, agents, envs, process and config; only the scripts use it.
"""
