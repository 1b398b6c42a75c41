"""Rollouts: the agent acts in its environments for T steps; test episodes.

This folder imports agents, envs, process and seeding.
"""
