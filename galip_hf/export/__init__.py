"""A trained generator as one file that runs without this package: ONNX, or a program of torch.export."""
