"""Faster twins of plain parts of agents, rollouts and ppo, which they are tested against.

Each module names the plain part that it stands for. This room uses ppo, rollouts, agents, envs,
process and config; none of those knows of it.
"""
