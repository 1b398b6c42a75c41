"""Tests of fabric_ppo/architectures."""
