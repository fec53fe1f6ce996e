"""Names of the files in a model directory."""

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
CARD = "README.md"
TRAINING = "training.json"  # the facts of the training run
REPORT = "report.json"  # the evaluation of these weights

__all__ = ["CARD", "CONFIG", "PROCESSOR", "REPORT", "TRAINING"]
