"""Print pip constraints that pin each dependency to its lower bound in setup.cfg, for `make test-lowest`.

python .ci/lowest_constraints.py > constraints.txt
"""

import configparser
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SETUP = Path(__file__).resolve().parent.parent / "setup.cfg"
EXTRAS = (
    *("dicom", "formats", "prepare", "evaluate", "track", "serve", "onnx", "openvino"),
    *("app", "bundle", "notebook", "test", "slow"),
)
_LOWER_BOUND = re.compile(r"([A-Za-z0-9._-]+)>=([0-9][0-9.]*)")


def constraints(setup: configparser.ConfigParser) -> Iterator[str]:
    """`name==X` for each `name>=X` of the dependencies and of `EXTRAS`.

    Raises:
        ValueError: a requirement that is not of the form `name>=X`.
    """
    lists = [setup["options"]["install_requires"]]
    lists += [setup["options.extras_require"][extra] for extra in EXTRAS]
    for requirement in "\n".join(lists).split():
        if requirement.startswith("galip-hf["):
            continue  # the package's own other extras, which are in `EXTRAS` themselves
        found = _LOWER_BOUND.fullmatch(requirement)
        if not found:
            raise ValueError(f"{SETUP.name}: found {requirement!r}; expected a lower bound, name>=version")
        yield f"{found[1]}=={found[2]}"


def main() -> int:
    """Print the constraints."""
    setup = configparser.ConfigParser()
    setup.read(SETUP, encoding="utf-8")
    print("\n".join(constraints(setup)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
