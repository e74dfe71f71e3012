"""Matrix products by oneDNN where torch's own choice for float32, MKL, is slow: AVX-512 processors not made by Intel.

There MKL takes its AVX2 code and oneDNN does not ask who made the processor: 180 against 80 GFLOP/s on one core of an
AMD EPYC. Both multiply and sum in float32, in another order, so numbers differ by rounding only.
"""

from functools import cache
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

CPU_INFO = Path("/proc/cpuinfo")
FEWEST_ROWS = 32
"""Below, as for the one row a step of generation multiplies, what a call of oneDNN costs is more than it saves."""


def multiply_by_onednn(model: "nn.Module") -> None:
    """Let the float32 linear modules of a model on a CPU multiply by `linear`. What needs gradients goes as before."""
    import torch
    from torch import nn

    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
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
    import torch

    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    if torch.is_grad_enabled() or not plain or x.numel() < FEWEST_ROWS * weight.shape[1] or not is_faster():
        return torch.nn.functional.linear(x, weight, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _forward(module: Any, x: "Tensor") -> "Tensor":
    return linear(x, module.weight, module.bias)
