"""The frozen CLIP model (BiomedCLIP, or a tiny stand-in) that guides training."""
