"""Scores of whole files, from steps to solutions, and the best of N."""
