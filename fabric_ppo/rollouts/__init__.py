"""Rollouts: the agent acts in its environments for T steps; test episodes.

This room uses agents, envs, process and seeding.
"""
