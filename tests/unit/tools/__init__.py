"""Tests of fabric_ppo/tools."""
