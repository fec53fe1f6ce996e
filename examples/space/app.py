"""A Hugging Face Space: the page of `galip-hf app` with the model that GALIP_MODEL names.

GALIP_MODEL is a variable of the Space: a repository of the Hub (user/name), or a folder of the Space itself.
"""

import os
import sys

from galip_hf.cli import main

MODEL = os.environ.get("GALIP_MODEL", "model")
PORT = os.environ.get("PORT", "7860")  # Spaces expect 7860

sys.exit(main(["app", "--model", MODEL, "--host", "0.0.0.0", "--port", PORT]))
