"""Raw public data to a table of slices: sources, registration, splits, checks and the run."""
