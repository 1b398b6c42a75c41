"""PPO itself, as a textbook has it: advantages, loss, minibatches, update, schedules.

Read this room first, in that order. It uses agents, rollouts, process, config and seeding; nothing
in it knows of `fast`.
"""
