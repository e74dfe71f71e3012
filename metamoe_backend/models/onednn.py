"""Matrix products by oneDNN where torch's own choice for float32, MKL, is slow: AVX-512 processors not made by Intel.

There MKL takes its AVX2 code and oneDNN does not ask who made the processor: 180 against 80 GFLOP/s on one core of an
AMD EPYC. Both multiply and sum in float32, in another order, so numbers differ by rounding only. Where memory has room
for a second copy of a weight, it is kept in oneDNN's own order, or (on every processor) with an adapter merged into it.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from torch import Tensor, nn

CPU_INFO = Path("/proc/cpuinfo")
FEWEST_ROWS = 32
"""Below, what a call of oneDNN costs is more than it saves, unless the weight is packed."""
KEPT_SHARE = 1 / 8
"""Copies are kept where all of a model's weights are no more of this machine's memory. Of the memory there is, not of
what is free: two runs on one machine compute alike."""
_HINTED_ROWS = 1024
"""For so many rows oneDNN chooses its order; it serves others as well."""


class KeptWeight:
    """A weight made of others, in oneDNN's order where that is the faster: made where it is first needed, and again
    once what it is made of has changed.

    A copy of it (`copy.deepcopy` of a model) begins empty.
    """

    def __init__(self) -> None:
        self._kept: Tensor | None = None
        self._sources: list[tuple[Tensor, int]] = []

    def __deepcopy__(self, _memo: object) -> "KeptWeight":
        return KeptWeight()

    def take(self, sources: "Sequence[Tensor]", make: "Callable[[], Tensor]") -> "Tensor":
        """The kept weight. make: computes it from `sources`, parameters that may change in place."""
        import torch

        unchanged = len(self._sources) == len(sources) and all(
            known.data_ptr() == source.data_ptr() and version == source._version
            for (known, version), source in zip(self._sources, sources, strict=True)
        )
        if self._kept is None or not unchanged:
            made = make()
            self._kept = torch.ops.mkldnn._reorder_linear_weight(made, _HINTED_ROWS) if is_faster() else made
            # Kept, so that their memory cannot become another parameter's.
            self._sources = [(source.detach(), source._version) for source in sources]
        return self._kept

    def drop(self) -> None:
        """Give its memory back until it is needed again."""
        self._kept, self._sources = None, []


def prepare_linears(model: "nn.Module") -> None:
    """Let the float32 linear modules of a model on a CPU multiply by oneDNN where that is faster, and keep copies of
    weights where memory has room. What needs gradients goes as before."""
    import torch
    from torch import nn

    found = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu"
    ]
    has_room = sum(module.weight.nbytes for module in found) <= KEPT_SHARE * psutil.virtual_memory().total
    for module in found:
        module.kept = KeptWeight() if has_room else None  # type: ignore[assignment]
        if is_faster():
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


@cache
def is_faster() -> bool:
    """Whether this processor is one on which oneDNN is the faster of the two; known by its name, not by a measurement,
    so that two runs on one machine compute alike."""
    import torch

    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if "AVX512" not in torch.backends.cpu.get_cpu_capability() or not CPU_INFO.is_file():
        return False
    return "GenuineIntel" not in CPU_INFO.read_text(encoding="utf-8", errors="replace")


def linear(x: "Tensor", weight: "Tensor", bias: "Tensor | None" = None) -> "Tensor":
    """x W^T + b over the last dimension, by oneDNN where that is faster and nobody asks for gradients."""
    if x.numel() >= FEWEST_ROWS * weight.shape[1] and is_faster() and _is_plain(x, weight):
        return multiply(x, weight, bias)
    import torch

    return torch.nn.functional.linear(x, weight, bias)


def multiply(x: "Tensor", weight: "Tensor", bias: "Tensor | None") -> "Tensor":
    """x W^T + b, where `linear` may be left to oneDNN or `keeps_copies` holds; of a weight as it is or kept."""
    import torch

    if not is_faster():
        return torch.nn.functional.linear(x, weight, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def keeps_copies(module: Any, x: "Tensor") -> bool:
    """Whether this linear module may multiply x by a `KeptWeight`: there is room, and nobody asks for gradients."""
    return getattr(module, "kept", None) is not None and x.numel() > 0 and _is_plain(x, module.weight)


def _is_plain(x: "Tensor", weight: "Tensor") -> bool:
    import torch

    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    return plain and not torch.is_grad_enabled()


def _forward(module: Any, x: "Tensor") -> "Tensor":
    if keeps_copies(module, x):
        return multiply(x, module.kept.take([module.weight], lambda: module.weight), module.bias)
    return linear(x, module.weight, module.bias)
