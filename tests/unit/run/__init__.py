"""Tests of fabric_ppo/run."""
