"""Tests of fabric_ppo/rollouts."""
