"""The geometry of training slices as it travels with a model: there and back, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from galip_hf.model.domains import IXI_DOMAINS
from galip_hf.model.errors import GalipError
from galip_hf.model.image_processing_galip import GalipImageProcessor
from galip_hf.model.slice_geometry import SliceGeometry

GEOMETRY = SliceGeometry(("axial",), (4.0, 3.5), (3.5, 4.2), (64, 96), 50.5, (45.0, 56.0), 0.42, False)


def test_it_travels_with_the_processor(tmp_path: Path) -> None:
    processor = GalipImageProcessor(domains=list(IXI_DOMAINS))
    assert processor.geometry is None
    processor.set_geometry(GEOMETRY)
    processor.save_pretrained(tmp_path)
    assert GalipImageProcessor.from_pretrained(tmp_path).geometry == GEOMETRY
    processor.set_geometry(None)
    processor.save_pretrained(tmp_path)
    assert GalipImageProcessor.from_pretrained(tmp_path).geometry is None


def test_unknown_sizes_and_planes_are_kept_as_such() -> None:
    unknown = SliceGeometry((), None, None, (64, 64), 50.0, (45.0, 56.0), 0.4)
    assert SliceGeometry.from_dict(unknown.to_dict(), "here") == unknown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"planes": ["oblique"]}, "planes is"),
        ({"planes": "axial"}, "planes is"),
        ({"pixel_size": [0.0, 1.0]}, "pixel_size is 0.0; expected numbers above 0"),
        ({"pixel_size": 4.0}, "pixel_size is 4.0; expected two numbers"),
        ({"pixel_size_range": [1.0, float("nan")]}, "pixel_size_range is nan"),
        ({"canvas": [64.5, 64]}, "canvas or foreground_share is out of range"),
        ({"canvas": [10**6, 64]}, "canvas or foreground_share is out of range"),
        ({"body_extent": True}, "body_extent is True"),
        ({"foreground_share": 1.5}, "out of range"),
        ({"skull_stripped": "no"}, "skull_stripped is 'no'"),
        ({"more": 1}, "expected an object with exactly"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GalipError, match=f"here: .*{message}"):
        SliceGeometry.from_dict({**GEOMETRY.to_dict(), **change}, "here")
    with pytest.raises(GalipError, match="slice_geometry"):
        GalipImageProcessor(domains=list(IXI_DOMAINS), slice_geometry={**GEOMETRY.to_dict(), **change})
