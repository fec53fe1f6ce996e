"""What an exported file says of itself: enough to translate scans, and to know where it comes from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import read_json
from ..hub.card import read_card
from ..hub.model_directory import CARD, CONFIG, PROCESSOR
from ..hub.pull import weights_name
from ..model.configuration_galip import GalipConfig
from ..model.domains import readable_json
from ..model.errors import GalipError
from ..model.intensity import IntensityNormalizer
from ..version import DISCLAIMER, __version__

KEY = "galip_hf"  # of a file's metadata, which are texts


@dataclass(frozen=True)
class ExportMetadata:
    """What is written into an exported file, as JSON under the one key `galip_hf`.

    Attributes:
        config: config.json of the model: architecture, domains and their prompts.
        preprocessor: preprocessor_config.json: intensity rules, statistics and geometry of the training.
        targets: the domains of the outputs, in their order; None where the target is an input, whose labels
            are places in the configuration's domains.
        size_multiple: what height and width must be multiples of.
        dtype: type of weights and activations, `fp32`, `fp16` or `bf16`.
        weights_sha256: of the weights' files, see `weights_hash`.
        licence: of the model card; None where it states none.
        check: the comparison with PyTorch before the file was written, see `export.check.compared`.
        version: of galip_hf.
        note: what the translations are not for.
    """

    config: dict[str, Any]
    preprocessor: dict[str, Any]
    targets: list[str] | None
    size_multiple: int
    dtype: str
    weights_sha256: str
    licence: str | None
    check: dict[str, Any]
    version: str = __version__
    note: str = DISCLAIMER

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None, where: str) -> "ExportMetadata":
        """Of the file `where`.

        Raises:
            GalipError: no metadata of ours, or of a version that this one does not know.
        """
        if text is None:
            raise GalipError(f"{where}: not exported by galip-hf (no metadata {KEY!r}); use galip-hf export")
        with readable_json(where):
            values = json.loads(text)
            if not isinstance(values, Mapping) or set(values) != set(cls.__dataclass_fields__):
                raise GalipError(
                    f"{where}: its metadata are not those of galip_hf {__version__}; export the model again"
                )
            return cls(**values)

    def generator_config(self) -> GalipConfig:
        """The model's configuration."""
        return GalipConfig.from_dict(self.config)

    def normalizer(self) -> IntensityNormalizer:
        """The domains' intensity rules, with statistics and geometry of the training."""
        return IntensityNormalizer.from_values(self.preprocessor)


def model_metadata(directory: Path, variant: str | None) -> dict[str, Any]:
    """The fields of `ExportMetadata` that come from a model directory."""
    card = read_card(directory / CARD)
    preprocessor = read_json(directory / PROCESSOR)
    return {
        "config": read_json(directory / CONFIG),
        "preprocessor": preprocessor,
        "weights_sha256": weights_hash(directory, variant),
        "licence": None if card is None else card.data.get("license"),
    }


def weights_hash(directory: Path, variant: str | None) -> str:
    """SHA-256 over the weights' files of a model directory, in one file or several.

    Raises:
        GalipError: none there.
    """
    stem = weights_name(variant).removesuffix(".safetensors")
    files = sorted([directory / f"{stem}.safetensors", *directory.glob(f"{stem}-*-of-*.safetensors")])
    files = [file for file in files if file.is_file()]
    if not files:
        raise GalipError(f"{directory}: no {stem}.safetensors in it; expected the weights of a model")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


__all__ = ["KEY", "ExportMetadata", "model_metadata", "weights_hash"]
