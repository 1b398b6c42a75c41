"""Tests of fabric_ppo/process."""
