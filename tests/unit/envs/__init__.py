"""Tests of fabric_ppo/envs."""
