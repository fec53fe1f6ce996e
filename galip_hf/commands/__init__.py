"""One module for each command of `galip-hf`: `add_parser` declares it, and what it needs is imported late."""
