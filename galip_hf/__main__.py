"""`python -m galip_hf`: the command line, also for launchers (`accelerate launch -m galip_hf train ...`)."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
