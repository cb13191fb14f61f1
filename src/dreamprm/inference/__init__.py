"""Aggregation, selection, metrics, and the tables made of them."""
