"""Colours of skills: one categorical palette, the same on every page, told apart with any colour vision.

The distance of two colours is 100 times their Oklab distance (Ottosson 2020) in the eyes that tell them apart worst:
full colour vision, protanopia, deuteranopia or tritanopia, simulated as in Machado, Oliveira and Fernandes 2009
(severity 1). PALETTE was found by maximising the least such distance among its colours and UNASSIGNED, over those that
stand out on white and on near-black; a test holds it to that. After the palette, the farthest free colour comes next.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np

UNASSIGNED = "#9a9a9a"
"""Unlabelled questions and noise."""

PALETTE = (
    "#5599ff", "#990077", "#0000ff", "#dd0000", "#ddbb00", "#bbbbff",
    "#55dd99", "#7700bb", "#7777bb", "#dd7755", "#bb5577", "#007700",
)  # fmt: skip
_STEPS = (0x00, 0x33, 0x55, 0x77, 0x99, 0xBB, 0xDD, 0xFF)
_LIGHTNESS = (45.0, 82.0)
_LEAST_CHROMA = 9.0

_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_VISIONS = np.array(
    [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)
"""Linear RGB as seen with full colour vision, protanopia, deuteranopia and tritanopia."""


def next_colour(used: Sequence[str]) -> str:
    """Colour (#rrggbb) of one more skill: the first of the palette not in `used`, else the one farthest from all."""
    taken = {colour.lower() for colour in used}
    for colour in PALETTE:
        if colour not in taken:
            return colour
    candidates = _candidates()
    apart = compute_distances(candidates, [*sorted(taken), UNASSIGNED]).min(axis=1)
    return candidates[int(apart.argmax())]


def compute_distances(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """Distance [len(first), len(second)] of each pair of #rrggbb colours, in the eyes that tell them apart worst."""
    one, other = _as_seen(first), _as_seen(second)
    return np.linalg.norm(one[:, :, None] - other[:, None], axis=-1).min(axis=0)


def _as_seen(colours: Sequence[str]) -> np.ndarray:
    """Oklab coordinates x 100 [visions, len(colours), 3]."""
    rgb = np.array([[int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)] for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ _VISIONS.transpose(0, 2, 1), 0, 1)
    return np.cbrt(seen @ _TO_CONES.T) @ _TO_OKLAB.T * 100


@lru_cache(maxsize=1)
def _candidates() -> tuple[str, ...]:
    """Colours of a grid that are neither too light for white, too dark for near-black, nor too grey."""
    grid = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in product(_STEPS, repeat=3)]
    lab = _as_seen(grid)[0]
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    kept = (lab[:, 0] >= _LIGHTNESS[0]) & (lab[:, 0] <= _LIGHTNESS[1]) & (chroma >= _LEAST_CHROMA)
    return tuple(colour for colour, keep in zip(grid, kept, strict=True) if keep)
