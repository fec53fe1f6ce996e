"""A table on the Hub, with a card that says what it holds and how it was made."""

import json
import re
from pathlib import Path

from ..data.table import SUMMARY_NAME, load_table, quiet_unless_terminal
from ..files import read_json
from ..model.errors import GalipError
from .describe import describe_summary
from .splits import SPLITS_NAME


def card_text(directory: str | Path, name: str) -> str:
    """The body of the dataset card (Markdown), from the table's summary: measured values only."""
    path = Path(directory) / SUMMARY_NAME
    summary = read_json(path)
    settings = json.dumps(summary.get("settings", {}), indent=2)
    described = describe_summary(summary)
    # Longer than what a subject's name may hold, which would end the block and go on as Markdown.
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", described + settings))]))
    return f"""# {name}

Slices of medical images for unpaired translation, prepared with galip-hf {summary.get("version", "")}.
One row a slice: `pixel_values` (float32, [0, 1] inside the intensity window), `domain`, `subject`, `slice`.
The licence and the terms of use are those of the original scans: state them here before sharing.
Not for diagnosis.

{fence}text
{described}
{fence}

## How it was made

{fence}json
{settings}
{fence}

`{SPLITS_NAME}` holds the assignment of subjects with its hash, `{SUMMARY_NAME}` what was left out and why.
"""


def push_table(directory: str | Path, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
    """Upload a table to the Hub (Parquet, with a card, its summary and its split); returns the address.

    Raises:
        GalipError: no table there, or the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    directory = Path(directory)
    tables = load_table(directory)
    text = card_text(directory, repo_id.rsplit("/", 1)[-1])
    try:
        with quiet_unless_terminal():
            tables.push_to_hub(repo_id, private=private, token=token)
        card = DatasetCard.load(repo_id, token=token)  # keeps the description of the columns that was pushed
        card.data.tags = ["medical", "image-to-image", "galip-hf"]
        card.text = text
        operations = [CommitOperationAdd("README.md", str(card).encode())]
        for path in sorted(directory.glob("*.png")) + [directory / SUMMARY_NAME, directory / SPLITS_NAME]:
            if path.is_file():
                operations.append(CommitOperationAdd(path.name, str(path)))
        commit = HfApi(token=token).create_commit(
            repo_id, operations, commit_message="Card, summary and split", repo_type="dataset"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise GalipError(f"{repo_id}: the Hub did not take the table ({reason})") from None
    return str(commit.repo_url)


__all__ = ["card_text", "push_table"]
