"""A deterministic encoder without a model: a hashed bag of words, so that texts that share words lie near each other.

from tests.fake_encoder import FakeEncoder, install

def test_something(monkeypatch):
    encoder = install(monkeypatch)      # every `load_encoder("minilm")` now gives this one
    ...
    assert encoder.encoded == ["the texts", "that were asked for"]
"""

import re
import zlib

import numpy as np


class FakeEncoder:
    """Same text, same vector, on every machine; remembers what it was asked to encode."""

    def __init__(self, name: str = "minilm", dim: int = 48) -> None:
        self.name = name
        self.dim = dim
        self.encoded: list[str] = []

    def encode(self, texts: list[str]) -> np.ndarray:
        """Unit vectors [len(texts), dim], float32."""
        self.encoded += texts
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for token in re.findall(r"[a-z]+|\d|[^\W\d_]", text.lower()) or [text]:
                code = zlib.crc32(token.encode("utf-8", "replace"))
                vectors[row, code % self.dim] += 1.0 if (code >> 16) % 2 else -1.0
            if not vectors[row].any():
                vectors[row, 0] = 1.0
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def install(monkeypatch, *names: str, dim: int = 48) -> FakeEncoder:
    """Put a fake in the place of the encoders `names` (by default minilm) until the test ends; returns the first."""
    from metamoe_backend import embed

    fakes = [FakeEncoder(name, dim) for name in names or ("minilm",)]
    for fake in fakes:
        monkeypatch.setitem(embed.LOADED, fake.name, fake)
    return fakes[0]
