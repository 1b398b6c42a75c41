"""Tests of fabric_ppo/ppo."""
