"""How good scores are: best of N, step metrics, how sure both are, and their tables."""
