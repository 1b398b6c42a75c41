"""Tests of fabric_ppo/agents."""
