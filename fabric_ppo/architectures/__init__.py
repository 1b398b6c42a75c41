"""Code of single architectures: the LightningModule, and player and trainers.

This folder imports run, fast, ppo, rollouts, agents, envs, process and config; only the scripts import it.
"""
