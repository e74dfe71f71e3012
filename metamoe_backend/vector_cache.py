"""Vectors kept by the content of their texts, for texts that are no questions: nothing is embedded twice.

One folder an encoder, in it files of at most `PART` vectors, each written whole and never changed. A cache: it may be
deleted at any time.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from metamoe_backend.embed import CHUNK, hash_text, load_encoder
from metamoe_backend.jobs.durable import replace_file

PART = 8192
"""Vectors in a file: what a crash may cost."""

OnTexts = Callable[[int, int], None]
"""Told (texts done, texts in all); may raise `StopRequested`."""


def embed_texts(texts: Sequence[str], encoder: str, folder: Path, on_texts: OnTexts = lambda *_: None) -> np.ndarray:
    """Unit vectors [n, dim] of the texts, float32; those in the cache under `folder` are read, the others added to it.

    What was embedded before `on_texts` or the encoder raises is in the cache, so that the work can go on from there.
    """
    own = folder / f"{re.sub(r'[^A-Za-z0-9.-]', '_', encoder)[-40:]}-{hash_text(encoder)[:8]}"
    codes = [hash_text(text) for text in texts]
    text_of = dict(zip(codes, texts, strict=True))
    row_of = {code: row for row, code in enumerate(text_of)}
    on_texts(0, len(row_of))
    loaded = load_encoder(encoder)
    vectors = np.zeros((len(row_of), loaded.dim), dtype=np.float32)
    missing = set(row_of) - _read_known(own, row_of, vectors)
    pending = sorted(missing, key=lambda code: (len(text_of[code]), code))  # texts of like length pad each other little
    fresh: list[str] = []
    try:
        for start in range(0, len(pending), CHUNK):
            on_texts(len(row_of) - len(pending) + start, len(row_of))
            chunk = pending[start : start + CHUNK]
            vectors[[row_of[code] for code in chunk]] = loaded.encode([text_of[code] for code in chunk])
            fresh += chunk
            if len(fresh) >= PART:
                _write(own, fresh, vectors[[row_of[code] for code in fresh]])
                fresh = []
    finally:
        if fresh:
            _write(own, fresh, vectors[[row_of[code] for code in fresh]])
    on_texts(len(row_of), len(row_of))
    return vectors if len(row_of) == len(texts) else vectors[[row_of[code] for code in codes]]


def _read_known(folder: Path, row_of: dict[str, int], vectors: np.ndarray) -> set[str]:
    """Fill in the vectors that are in the cache; returns their codes."""
    known: set[str] = set()
    for path in sorted(folder.glob("*.npz")):
        codes, part = _read(path)
        if part.shape != (len(codes), vectors.shape[1]):
            path.unlink()  # damaged, or of another encoder of this name: embedded anew
            continue
        wanted = [place for place, code in enumerate(codes) if code in row_of]
        vectors[[row_of[codes[place]] for place in wanted]] = part[wanted]
        known.update(codes[place] for place in wanted)
    return known


def _read(path: Path) -> tuple[list[str], np.ndarray]:
    """Codes and vectors of a file; none where it cannot be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return kept["codes"].tolist(), kept["vectors"]
    except (OSError, ValueError, KeyError, BadZipFile):
        return [], np.zeros((0, 0), dtype=np.float32)


def _write(folder: Path, codes: Sequence[str], vectors: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{hash_text(' '.join(codes))}.npz"
    replace_file(folder / name, lambda file: np.savez(file, codes=np.asarray(codes), vectors=vectors))
