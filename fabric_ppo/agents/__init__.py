"""The agent: encoders, policy and value networks, memory, action distributions, policy files.

It uses envs (for the spaces), process and config.
"""
