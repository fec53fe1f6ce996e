"""Scores of translations under named protocols, baselines, and the report."""
