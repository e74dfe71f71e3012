"""What a training needs of a device's memory, told before it starts, and what to lower where that was too much."""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metamoe_backend.config import LoraSettings, OptimSettings
from metamoe_backend.errors import MemoryShortError

_BYTES = {"float32": 4, "bfloat16": 2}
_FOUR_BIT = 0.55
"""Bytes a weight in NF4 with its doubly quantised scales."""
_TRAINED = 16
"""Bytes a trained parameter: itself, its gradient and AdamW's two moments, in float32."""
_ANSWER_SHARE = 1 / 8
"""The head is computed for answer tokens alone; they are taken to be this share of all."""
_LOGITS = 3
"""Logits, their softmax and its gradient lie in memory at the same time, in float32."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides how much memory its training takes. Sizes as in a llama's config.json."""

    parameters: int
    hidden: int
    inner: int
    layers: int
    key_value: int
    """Channels of all keys of a layer, and as many values."""
    vocabulary: int
    linear: dict[str, list[tuple[int, int]]]
    """Shapes (out, in) of the layers' linear modules, by the last part of their name."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes a training holds at its fullest step, part by part."""

    weights: float
    trained: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.trained + self.activations + self.logits


def read_shape(folder: Path) -> ModelShape | None:
    """The shape of the model in a folder, off its config.json and the heads of its safetensors, without loading it.

    None where the folder does not tell, as of an architecture with other names for its sizes.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shapes = dict(pair for path in sorted(folder.glob("*.safetensors")) for pair in _read_head(path).items())
        heads = int(config["num_attention_heads"])
        width = int(config.get("head_dim") or config["hidden_size"] // heads)
        linear: dict[str, list[tuple[int, int]]] = {}
        for name, shape in shapes.items():
            if len(shape) == 2 and ".layers." in name and name.endswith(".weight"):
                linear.setdefault(name.split(".")[-2], []).append((shape[0], shape[1]))
        return ModelShape(
            parameters=sum(_product(shape) for shape in shapes.values()),
            hidden=int(config["hidden_size"]),
            inner=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            key_value=width * int(config.get("num_key_value_heads") or heads),
            vocabulary=int(config["vocab_size"]),
            linear=linear,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, struct.error):
        return None


def estimate_training(
    shape: ModelShape,
    lora: LoraSettings,
    optim: OptimSettings,
    processes: int = 1,
    trained: int | None = None,
    frozen: int = 0,
) -> MemoryNeed:
    """Bytes on each of `processes` devices, at batches of questions that are all `optim.max_tokens` long: the most.

    trained: trained parameters, by default those of one adapter shaped as `lora` says. frozen: parameters in float32
    beside the base model's. Without gradient checkpointing every layer keeps, for each token, what its backward pass
    reads: about 8 hidden states, 4 inner ones, keys and values (tests/test_memory.py counts them); with it, one hidden
    state, and all of that for one layer at a time.
    """
    each = _BYTES[optim.dtype]
    if trained is None:
        trained = lora.rank * sum(out + into for name in lora.targets for out, into in shape.linear.get(name, []))
    quantised = sum(out * into for shapes in shape.linear.values() for out, into in shapes) if lora.four_bit else 0
    tokens = -(-optim.batch_size // processes) * optim.max_tokens
    # An adapter in float32 reads its module's input in float32, too: a copy where the model is in bfloat16.
    copies = sum(shapes[0][1] for name, shapes in shape.linear.items() if name in lora.targets) if each < 4 else 0
    layer = (8 * shape.hidden + 4 * shape.inner + 2 * shape.key_value) * each + 4 * copies
    kept = shape.layers * shape.hidden * each + layer if optim.gradient_checkpointing else shape.layers * layer
    return MemoryNeed(
        weights=(shape.parameters - quantised) * each + quantised * _FOUR_BIT + 4 * frozen,
        trained=_TRAINED * trained,
        activations=tokens * kept,
        logits=tokens * _ANSWER_SHARE * shape.vocabulary * 4 * _LOGITS,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of a device or of this machine ran out."""
    said = str(error).lower()
    named = any(cls.__name__ in ("OutOfMemoryError", "MemoryError") for cls in type(error).__mro__)
    return named or "can't allocate memory" in said or "not enough memory" in said


def make_memory_error(device: str, doing: str, remedies: Sequence[str]) -> MemoryShortError:
    """One sentence: whose memory ran out at what, and what to lower."""
    advice = ", or ".join(part for part in (", ".join(remedies[:-1]), remedies[-1]) if part)
    return MemoryShortError(f"{device} ran out of memory{doing}; {advice}.")


def list_remedies(settings: Any) -> list[str]:
    """What would make a run with these settings of a stage smaller: only what is not done already."""
    if hasattr(settings, "optim"):
        return list_training_remedies(settings.optim)
    found = []
    if getattr(settings, "batch_tokens", None):
        found.append(f"lower batch_tokens (it is {settings.batch_tokens})")
    if getattr(settings, "dtype", None) == "float32":
        found.append("set dtype to bfloat16")
    return [*found, "choose another device"]


def list_training_remedies(optim: OptimSettings) -> list[str]:
    """What would make a training smaller, the cheapest first."""
    found = [f"lower optim.batch_size (it is {optim.batch_size})"] if optim.batch_size > 1 else []
    found.append(f"lower optim.max_tokens (it is {optim.max_tokens})")
    if not optim.gradient_checkpointing:
        found.append("set optim.gradient_checkpointing")
    if optim.dtype == "float32":
        found.append("set optim.dtype to bfloat16")
    return [*found, "choose another device"]


def _read_head(path: Path) -> dict[str, list[int]]:
    """Tensor shapes of a safetensors file: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > 100_000_000:
            raise ValueError(f"{path} is no safetensors file")
        head = json.loads(file.read(length))
    return {name: entry["shape"] for name, entry in head.items() if name != "__metadata__"}


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= int(size)
    return total
