"""betty Engines: what runs, validates, logs and checkpoints."""
