"""One YAML per experiment, validated against dreamprm.config."""
