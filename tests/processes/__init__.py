"""Tests of what needs processes of its own: kills, signals, hosts, disks, launchers, commands."""
