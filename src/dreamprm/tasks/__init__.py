"""The tasks that the framework ships: what each adds to a lower and an upper level."""
