"""Command line, benchmark suite, plots and videos.

This room uses run, rollouts, agents, envs, process and config; the scripts use its `flags`.
"""
