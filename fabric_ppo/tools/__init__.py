"""Command line, benchmark suite, plots and videos.

This folder imports run, rollouts, agents, envs, process and config; the scripts import its `flags`.
"""
