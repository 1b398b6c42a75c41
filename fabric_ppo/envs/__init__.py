"""Environments that step together: the contract, its three backends, and their spaces."""
