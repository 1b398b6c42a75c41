"""Tests of fabric_ppo/fast."""
