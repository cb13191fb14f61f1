"""One YAML per experiment, validated against its task's Config."""
