"""Whole heads and skull-stripped brains are told apart in every contrast of the phantom."""

import numpy as np
import pytest

from galip_hf.data import phantom
from galip_hf.data.skull import looks_skull_stripped
from galip_hf.foreground import body_mask

PIXEL = (phantom.FIELD_OF_VIEW / 64,) * 2
BRAIN = [phantom.TISSUES.index(name) for name in phantom.TISSUES if name not in ("air", "scalp", "bone")]


@pytest.mark.parametrize("contrast", phantom.CONTRASTS)
@pytest.mark.parametrize("seed", [3, 4])
def test_told_apart(contrast: str, seed: int) -> None:
    subject = phantom.make_subject(seed)
    head = phantom.render(subject, contrast)
    brain = head * (subject.fractions[BRAIN].sum(axis=0) > 0.5)
    assert looks_skull_stripped(head, body_mask([head]), PIXEL) is False
    assert looks_skull_stripped(brain, body_mask([brain]), PIXEL) is True


def test_unclear_without_a_head() -> None:
    head = phantom.render(phantom.make_subject(3), "T1")
    body = body_mask([head])
    assert looks_skull_stripped(head, body, None) is None  # how large a pixel is, is unknown
    assert looks_skull_stripped(head, body, (0.5, 0.5)) is None  # a body of 25 mm is no head
    assert looks_skull_stripped(head, np.zeros_like(body), PIXEL) is None
