"""Tests of Fabric PPO: `unit`, `properties`, `processes`, and their `fixtures`."""
