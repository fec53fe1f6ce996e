"""Training: recipes, the step, its losses and networks, checkpoints, validation."""
