"""Scans and tables of slices: reading, writing, sampling, and the procedural phantom."""
