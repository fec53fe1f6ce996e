"""The generator, its configuration and its intensity rules: all that travels to the Hub with the weights."""
