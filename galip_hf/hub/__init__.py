"""Models to and from the Hugging Face Hub, and their model cards."""
