"""The reward model inside other people's code."""
