"""LoRA adapters in PEFT's folder format, read without trusting them."""

import hashlib
import json
import math
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metamoe_backend.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
HARMLESS_SUFFIXES = {".json", ".md", ".txt", ".jinja"}
HARMLESS_NAMES = {".gitattributes"}
"""Plain text that may lie beside the two files; it is never read."""
MAX_RANK = 512
MAX_CONFIG_BYTES = 1 << 20
MAX_HEADER_BYTES = 16 << 20
MAX_WEIGHTS_BYTES = 8 << 30
FLOATS = {"F32": 4, "F16": 2, "BF16": 2}
"""Accepted number formats and their bytes."""
KEY = re.compile(r"^base_model\.model\.(?P<module>[\w.]+)\.lora_(?P<matrix>[AB])\.weight$")
REFUSED = {
    "use_dora": "it is a DoRA adapter",
    "modules_to_save": "it replaces whole modules (modules_to_save)",
    "rank_pattern": "its ranks differ from module to module (rank_pattern)",
    "alpha_pattern": "its scales differ from module to module (alpha_pattern)",
    "lora_bias": "it adapts biases (lora_bias)",
    "fan_in_fan_out": "its matrices are transposed (fan_in_fan_out)",
    "layer_replication": "it repeats layers (layer_replication)",
    "target_parameters": "it adapts bare parameters (target_parameters)",
    "auto_map": "it names code of its own (auto_map)",
    "trainable_token_indices": "it changes token embeddings (trainable_token_indices)",
    "alora_invocation_tokens": "it acts only behind certain tokens (alora_invocation_tokens)",
    "use_qalora": "it pools its inputs (use_qalora)",
    "use_bdlora": "its matrices are block-diagonal (use_bdlora)",
    "kasa_config": "it is a KaSA adapter",
    "velora_config": "it is a VeLoRA adapter",
    "monteclora_config": "it is a MonteCLoRA adapter",
    "arrow_config": "it is itself a mixture (arrow_config)",
}
"""Settings under which the delta would not be scale * B A on fixed linear modules."""
BROKEN = "{path} is not a whole safetensors file; save or copy the adapter again."
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that also change the base model's weights."""


@dataclass
class AdapterWeights:
    """One LoRA: for each module, y = W x + scale * B A x."""

    name: str
    rank: int
    alpha: float
    scale: float
    """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA."""
    targets: list[str]
    """Adapted modules by the last part of their name, sorted."""
    sha256: str
    """Of adapter_model.safetensors."""
    a: dict[str, "torch.Tensor"] = field(repr=False)
    """Full module name to A [rank, inputs]."""
    b: dict[str, "torch.Tensor"] = field(repr=False)
    """Full module name to B [outputs, rank]."""

    @property
    def modules(self) -> list[str]:
        return list(self.a)

    @property
    def parameters(self) -> int:
        return sum(matrix.numel() for part in (self.a, self.b) for matrix in part.values())


def read_adapter(folder: Path, model: "nn.Module | None" = None) -> AdapterWeights:
    """Read a PEFT LoRA folder; everything is checked before a number is loaded. The name is the folder's.

    With `model`, every module must be one of its linear modules, of the right shape. Raises `InputError` with the
    file, what is wrong and the remedy.
    """
    _check_files(folder)
    config = _read_config(folder / CONFIG_FILE)
    weights = folder / WEIGHTS_FILE
    shapes = _read_shapes(weights)
    modules = _check_shapes(weights, shapes, int(config["r"]))
    if model is not None:
        check_fit(folder.name, {module: (a[1], b[0]) for module, (a, b) in modules.items()}, model)
    return _load(folder, config, list(modules))


def hash_adapter(folder: Path) -> str:
    """SHA-256 of a folder's adapter_model.safetensors; raises `InputError` when it is not there."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise InputError(f"Adapter {folder.name} has no {WEIGHTS_FILE} in {folder}; train or import it again.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_adapter(folder: Path, weights: AdapterWeights, base: str) -> None:
    """Write `weights` as a PEFT folder (adapter_config.json + adapter_model.safetensors)."""
    from safetensors.torch import save_file

    rslora = weights.rank > 1 and math.isclose(weights.scale, weights.alpha / math.sqrt(weights.rank))
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": weights.rank,
        "lora_alpha": weights.alpha, "use_rslora": rslora, "lora_dropout": 0.0, "bias": "none",
        "target_modules": weights.targets, "inference_mode": True,
    }  # fmt: skip
    tensors = {}
    for module in weights.modules:
        tensors[f"base_model.model.{module}.lora_A.weight"] = weights.a[module].contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = weights.b[module].contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def find_layer(module: str) -> int:
    """Number of the transformer layer in a module's name, the first number in it; -1 for a module outside layers."""
    return next((int(part) for part in module.split(".") if part.isdigit()), -1)


def check_fit(name: str, sizes: dict[str, tuple[int, int]], model: "nn.Module") -> None:
    """Check that each module (name to inputs, outputs) is a linear module of `model`; raises `InputError`."""
    from torch import nn

    linears = dict(model.named_modules())
    for module, (inputs, outputs) in sizes.items():
        found = linears.get(module)
        if found is None:
            raise InputError(
                f"Adapter {name} adapts {module}, which the base model has not; choose the base it was made for."
            )
        if not isinstance(found, nn.Linear):
            raise InputError(
                f"Adapter {name} adapts {module}, a {type(found).__name__}; only linear modules can carry experts."
            )
        if (found.in_features, found.out_features) != (inputs, outputs):
            raise InputError(
                f"Adapter {name} is {inputs} -> {outputs} at {module}, the base model is {found.in_features} -> "
                f"{found.out_features}; choose the base it was made for."
            )


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"Adapter folder {folder} does not exist; name a PEFT folder.")
    for name, limit in ((CONFIG_FILE, MAX_CONFIG_BYTES), (WEIGHTS_FILE, MAX_WEIGHTS_BYTES)):
        if not (folder / name).is_file():
            raise InputError(f"Adapter {folder.name} has no {name} in {folder}; save it with PEFT's save_pretrained.")
        if (folder / name).stat().st_size > limit:
            raise InputError(
                f"{folder / name} is larger than {limit >> 20} MB, too large for an adapter; use a smaller rank."
            )
    for path in sorted(folder.iterdir()):
        known = path.name in (WEIGHTS_FILE, *HARMLESS_NAMES) or path.suffix in HARMLESS_SUFFIXES
        if not known or not path.is_file():
            raise InputError(
                f"Adapter {folder.name} holds {path.name!r}; only {CONFIG_FILE} and {WEIGHTS_FILE} are accepted "
                "(no pickles, no code, no folders): remove it."
            )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); save the adapter again.") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else None
        raise InputError(f"{path} describes a {found!r} adapter; only peft_type LORA is supported, train one.")
    reason = next((REFUSED[key] for key in REFUSED if config.get(key)), None)
    if config.get("bias", "none") != "none":
        reason = f"it trains biases (bias is {str(config['bias'])[:40]!r})"
    if str(config.get("init_lora_weights")).lower().startswith(CHANGES_BASE):
        reason = (
            f"its initialisation ({config['init_lora_weights']!r}) changes the base weights; convert it to plain LoRA"
        )
    if reason:
        raise InputError(f"{path} cannot be used as an expert: {reason}; train or save it as plain LoRA.")
    rank, alpha = config.get("r"), config.get("lora_alpha", 8)
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
        raise InputError(f"{path}: r is {str(rank)[:40]!r}; a rank from 1 to {MAX_RANK} is needed.")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < 1e6:
        raise InputError(f"{path}: lora_alpha is {str(alpha)[:40]!r}; a number above 0 is needed.")
    return config | {"lora_alpha": alpha}


def _read_shapes(path: Path) -> dict[str, list[int]]:
    """Tensor names and shapes from the file's header alone; raises `InputError` if it is not what it should be."""
    broken = InputError(BROKEN.format(path=path))
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER_BYTES + 1
        if length > min(MAX_HEADER_BYTES, path.stat().st_size - 8):
            raise broken
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = {
                key: (entry["dtype"], list(entry["shape"]), entry["data_offsets"]) for key, entry in header.items()
            }
            end = max((offsets[1] for _, _, offsets in entries.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise broken from None
    if end != path.stat().st_size - 8 - length:
        raise broken
    for key, (dtype, shape, _) in entries.items():
        if dtype not in FLOATS:
            raise InputError(
                f"{path}: {key[:120]!r} holds {dtype} numbers; save the adapter as float32, float16 or bfloat16."
            )
        if len(shape) != 2 or not all(isinstance(size, int) and 0 < size <= 1 << 24 for size in shape):
            raise InputError(f"{path}: {key[:120]!r} has the shape {shape[:6]}; LoRA matrices have two axes.")
    return {key: shape for key, (_, shape, _) in entries.items()}


def _check_shapes(path: Path, shapes: dict[str, list[int]], rank: int) -> dict[str, tuple[list[int], list[int]]]:
    """Module to the shapes of its A and B, in the file's order of A; raises `InputError` when they do not pair."""
    pairs: dict[str, dict[str, list[int]]] = {}
    for key, shape in shapes.items():
        match = KEY.match(key)
        if not match:
            raise InputError(f"{path} holds {key[:120]!r}, which is no LoRA matrix; save the adapter as plain LoRA.")
        pairs.setdefault(match["module"], {})[match["matrix"]] = shape
    if not pairs:
        raise InputError(f"{path} holds no LoRA matrices; save the adapter again.")
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise InputError(f"{path}: {module} has only one of lora_A and lora_B; save the adapter again.")
        if pair["A"][0] != rank or pair["B"][1] != rank:
            raise InputError(
                f"{path}: {module} has rank {pair['A'][0]} in A and {pair['B'][1]} in B, but {CONFIG_FILE} says r = "
                f"{rank}; save the adapter again."
            )
    return {module: (pairs[module]["A"], pairs[module]["B"]) for module in sorted(pairs, key=_natural_order)}


def _natural_order(module: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in module.split(".")]


def _load(folder: Path, config: dict[str, Any], modules: list[str]) -> AdapterWeights:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / WEIGHTS_FILE
    content = path.read_bytes()  # read once, so that what is hashed is what is loaded
    try:
        tensors = load(content)
    except SafetensorError:  # the header is well-formed, but its offsets contradict its shapes
        raise InputError(BROKEN.format(path=path)) from None
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {key} holds infinite or undefined numbers; train the adapter again.")
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    return AdapterWeights(
        name=folder.name,
        rank=rank,
        alpha=alpha,
        scale=alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank,
        targets=sorted({module.rsplit(".", 1)[-1] for module in modules}),
        sha256=hashlib.sha256(content).hexdigest(),
        a={module: tensors[f"base_model.model.{module}.lora_A.weight"] for module in modules},
        b={module: tensors[f"base_model.model.{module}.lora_B.weight"] for module in modules},
    )
