"""Checkpoints, metrics and schedules."""
