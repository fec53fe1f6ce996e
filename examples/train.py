"""`galip-hf train` as a script: the same arguments.

python examples/train.py examples/configs/phantom.yaml training.max_steps=100
accelerate launch examples/train.py examples/configs/phantom.yaml --push-to-hub USER/NAME
"""

import sys

from galip_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
