"""PPO itself, as a textbook has it: advantages, loss, minibatches, update, schedules.

Read this folder first, in that order. It imports agents, rollouts, process, config and seeding, and
never `fast`.
"""
