"""Many points as one picture: its size depends on the screen, not on the points.

A cell of the picture has the mean colour of its points, and is the denser the more there are (on a logarithmic scale),
as in datashader. The sums are numpy's `bincount`: a million points take a tenth of a second (docs/decisions/007).
"""

import base64
import io
from collections.abc import Sequence

import numpy as np

View = tuple[float, float, float, float]
"""x from, x to, y from, y to."""
WIDTH, HEIGHT = 720, 540
"""Most cells of a picture: about the pixels that a map has on a page."""
FAINT = 0.15
_LEAST_OPACITY, _SHADES = 0.45, 6


def draw_points(
    xs: np.ndarray, ys: np.ndarray, codes: np.ndarray, colours: Sequence[str], view: View, spread: int = 1,
    picked: np.ndarray | None = None,
) -> str:  # fmt: skip
    """A data URI (WebP, transparent) of the points (xs [n], ys [n]) within `view`.

    codes [n]: place in `colours` (#rrggbb or rgba(…)) of each point's colour. spread: how many cells a point reaches
    beyond its own. picked [n] bool: all other points are faint.
    """
    left, right, low, high = view
    cell = max((right - left) / WIDTH, (high - low) / HEIGHT)
    shape = max(1, round((high - low) / cell)), max(1, round((right - left) / cell))
    within = np.flatnonzero((xs >= left) & (xs < right) & (ys > low) & (ys <= high))
    column = np.minimum(((xs[within] - left) / cell).astype(np.int32), shape[1] - 1)
    row = np.minimum(((high - ys[within]) / cell).astype(np.int32), shape[0] - 1)  # pictures begin at the top
    places, codes = row * shape[1] + column, codes[within]
    palette = np.array([_parse_colour(colour) for colour in colours])
    if picked is None:
        return _encode(*_shade(places, palette[codes], shape, spread))
    chosen = picked[within]
    colour, opacity = _shade(places[~chosen], palette[codes[~chosen]], shape, spread)
    over, opaque = _shade(places[chosen], palette[codes[chosen]], shape, spread)
    above = opaque > 0
    return _encode(np.where(above[..., None], over, colour), np.where(above, opaque, FAINT * opacity))


def _parse_colour(colour: str) -> list[float]:
    """Red, green, blue (0 to 255) and opacity (0 to 1) of #rrggbb or rgba(…)."""
    if colour.startswith("#"):
        return [*(int(colour[start : start + 2], 16) for start in (1, 3, 5)), 1.0]
    return [float(number) for number in colour.removeprefix("rgba(").removesuffix(")").split(",")]


def _shade(places: np.ndarray, rgba: np.ndarray, shape: tuple[int, int], spread: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour [rows, columns, 3] of 0..255 and opacity [rows, columns] of 0..1."""
    layers = [None, *rgba.T]
    sums = [np.bincount(places, weights, shape[0] * shape[1]).reshape(shape) for weights in layers]
    count, *colour, opacity = _spread(np.stack(sums), spread)
    there = count > 0
    dense = np.log1p(np.quantile(count[there], 0.98)) if there.any() else 1.0
    share = np.minimum(1, np.log1p(count) / dense)
    count = np.maximum(count, 1)
    opacity = there * (_LEAST_OPACITY + (1 - _LEAST_OPACITY) * share) * opacity / count
    return np.stack(colour, axis=-1) / count[..., None], opacity


def _spread(sums: np.ndarray, reach: int) -> np.ndarray:
    """Each cell [layers, rows, columns] with those less than `reach` + ½ away added: points become discs."""
    if not reach:
        return sums
    rows, columns = sums.shape[1:]
    padded = np.pad(sums, ((0, 0), (reach, reach), (reach, reach)))
    total = np.zeros_like(sums)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if down**2 + right**2 < (reach + 0.5) ** 2:
                total += padded[:, reach + down : reach + down + rows, reach + right : reach + right + columns]
    return total


def _encode(colour: np.ndarray, opacity: np.ndarray) -> str:
    from PIL import Image

    shaded = np.ceil(opacity * _SHADES) / _SHADES  # few shades: fewer bytes, and nobody sees it
    picture = Image.fromarray(np.dstack([colour, 255 * shaded]).round().astype(np.uint8), "RGBA")
    file = io.BytesIO()
    picture = picture.quantize(256, method=Image.Quantize.FASTOCTREE).convert("RGBA")
    picture.save(file, format="WEBP", lossless=True, quality=50)  # a lossy one greys single points
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
