"""Run directories: the names in them, opening one, and what is written there while a run goes."""
