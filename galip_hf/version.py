"""What every output says of its origin: the version, and that it is synthetic."""

__version__ = "0.1.0"
DISCLAIMER = "synthetic, not for diagnosis"
