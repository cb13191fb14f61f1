"""betty Problems: what is optimised, one file per task."""
