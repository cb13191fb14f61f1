"""Reading and checking YAML with overrides; a part's own keys stand beside the part."""
