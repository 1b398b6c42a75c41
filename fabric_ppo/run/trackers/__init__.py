"""Trackers: destinations of a run's metrics; the protocol, TensorBoard and JSON lines."""
