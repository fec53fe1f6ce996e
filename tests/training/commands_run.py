"""Runs command lines of `galip-hf` one after the other in this process; for test_nodes.py.

Arguments: a JSON list of argument lists, and the JSON file to write: exit code and stderr of each.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import torch

from galip_hf.cli import main

torch.set_num_threads(1)
results = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(arguments)
    results.append([code, errors.getvalue()])
Path(sys.argv[2]).write_text(json.dumps(results), encoding="utf-8")
