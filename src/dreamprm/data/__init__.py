"""Trajectories: the record, file formats, splits, encoding into batches, the built-in domains."""
