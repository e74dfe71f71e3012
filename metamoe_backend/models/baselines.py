"""Ways to train against forgetting that mixtures are compared with: orthogonal subspaces (OSF) and block expansion.

OSF (PEFT's; Nayak et al. 2025, arXiv 2504.07097) freezes the strong singular directions of a weight and trains the
weak ones: W' = W + U S V - U0 S0 V0. That change has rank 2r, so it is kept as a plain LoRA folder of rank 2r.
Block expansion (LLaMA-Pro; Wu et al. 2024, arXiv 2401.02415) puts copies of blocks behind the originals, with output
projections of zero so that they begin as the identity, and trains the copies alone.
"""

import copy
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metamoe_backend.config import LoraSettings
from metamoe_backend.errors import ConfigError, StorageError
from metamoe_backend.models.adapters import AdapterWeights

if TYPE_CHECKING:
    from torch import nn

SPEC_FILE = "blocks.json"
WEIGHTS_FILE = "blocks.safetensors"
OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")
"""The projections that end a block's two halves; both are added to the residual stream."""


# ---- orthogonal subspaces --------------------------------------------------------------------------------------------


def add_subspaces(model: "nn.Module", lora: LoraSettings, seed: int) -> Any:
    """The model with the `lora.rank` weakest singular directions of every target module, which alone are trained.

    `lora.alpha` and `lora.dropout` do not count. Raises `ConfigError` when a module has no more directions than that.
    """
    import torch
    from peft import OSFConfig, get_peft_model

    ranks = {}
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in lora.targets:
            smallest = min(module.weight.shape)  # type: ignore[union-attr, arg-type]
            if lora.rank >= smallest:
                raise ConfigError(f"lora.rank is {lora.rank}, but {name} has {smallest} directions in all; lower it.")
            ranks[name] = smallest - lora.rank
    torch.manual_seed(seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        config = OSFConfig(task_type="CAUSAL_LM", target_modules=lora.targets, rank_pattern=ranks)
        return get_peft_model(model, config)  # type: ignore[arg-type]


def extract_subspaces(model: Any, lora: LoraSettings, dtype: str) -> AdapterWeights:
    """The change of every weight as LoRA matrices of rank 2r and scale 1: B = [U S, -U0 S0], A = [V; V0]."""
    import torch
    from peft.tuners.osf.layer import OSFLayer

    a: dict[str, torch.Tensor] = {}
    b: dict[str, torch.Tensor] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, OSFLayer):
            continue
        adapter = layer.active_adapters[0]
        now: Any = layer.osf_svd_params[adapter]
        begun = [values[adapter] for values in (layer._osf_U_low_init, layer._osf_S_low_init, layer._osf_V_low_init)]
        module = name.removeprefix("base_model.model.")
        changed = torch.cat([now["U_low"] * now["S_low"], -begun[0] * begun[1]], dim=1)
        read = torch.cat([now["V_low"], begun[2]])
        for kept, values in ((a, read), (b, changed)):
            kept[module] = values.detach().to("cpu", getattr(torch, dtype)).contiguous()
    rank = 2 * lora.rank
    return AdapterWeights(
        name="", rank=rank, alpha=float(rank), scale=1.0, targets=sorted(set(lora.targets)), sha256="", a=a, b=b
    )


# ---- block expansion -------------------------------------------------------------------------------------------------


class BlockSpec(BaseModel):
    """blocks.json."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    base: str
    after: list[int] = Field(min_length=1)
    """The block of the base model, from 0, that each new block was copied from and stands behind; rising."""
    weights_sha256: str = ""


def choose_places(blocks: int, count: int) -> list[int]:
    """Behind which of `blocks` blocks `count` new ones stand: one at the end of each of as many equal groups."""
    if count > blocks:
        raise ConfigError(f"blocks is {count}, but the base model has {blocks} blocks to copy; lower it.")
    return [blocks * (group + 1) // count - 1 for group in range(count)]


def expand_blocks(model: Any, after: Sequence[int]) -> "list[nn.Module]":
    """Put a copy of each block `after` behind it, its output projections zero: the model answers as before.

    Returns the new blocks, which alone require a gradient. Raises `ConfigError` for an architecture without them.
    """
    decoder = model.get_decoder()
    blocks = list(decoder.layers)
    made = []
    for place in after:
        new = copy.deepcopy(blocks[place])
        for name in OUTPUTS:
            try:
                output = new.get_submodule(name)
            except AttributeError:
                raise ConfigError(f"Block expansion needs blocks with {name}; this model has none: use lora.") from None
            for parameter in output.parameters():
                parameter.data.zero_()
        new.requires_grad_(True)
        made.append(new)
    order: list[Any] = []
    for place, block in enumerate(blocks):
        order += [block, *(new for new, behind in zip(made, after, strict=True) if behind == place)]
    _set_blocks(model, order)
    return made


def find_places(made: Sequence[Any]) -> list[int]:
    """Behind which blocks of the base model, from 0, the new ones stand."""
    return [block.self_attn.layer_idx - 1 - index for index, block in enumerate(made)]


def remove_blocks(model: Any, made: "Sequence[nn.Module]") -> None:
    """Take new blocks out again: the model is what it was."""
    _set_blocks(model, [block for block in model.get_decoder().layers if all(block is not new for new in made)])


def _set_blocks(model: Any, order: list[Any]) -> None:
    from torch import nn

    decoder = model.get_decoder()
    decoder.layers = nn.ModuleList(order)
    for index, block in enumerate(order):
        block.self_attn.layer_idx = index  # its place in the KV cache
    for config in (model.config, decoder.config):
        config.num_hidden_layers = len(order)
        if getattr(config, "layer_types", None) is not None:
            kinds = {getattr(block, "attention_type", "full_attention") for block in order}
            if kinds != {"full_attention"}:
                raise ConfigError("Block expansion needs blocks of full attention; use lora for this model.")
            config.layer_types = ["full_attention"] * len(order)


def write_blocks(folder: Path, base: str, after: Sequence[int], made: "Sequence[nn.Module]") -> str:
    """Write new blocks into `folder` (blocks.json + blocks.safetensors); returns the SHA-256 that stands for them."""
    from safetensors.torch import save

    tensors = {
        f"{index}.{name}": values.detach().cpu().contiguous()
        for index, block in enumerate(made)
        for name, values in block.state_dict().items()
    }
    content = save(tensors)
    spec = BlockSpec(base=base, after=list(after), weights_sha256=hashlib.sha256(content).hexdigest())
    text = spec.model_dump_json(indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(content)
    (folder / SPEC_FILE).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def open_blocks(model: Any, folder: Path, sha256: str) -> Iterator[None]:
    """The model with the blocks of a folder inside; afterwards it is what it was.

    Raises `StorageError` when the files are damaged, not those recorded (`sha256`), or do not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    damaged = StorageError(f"The blocks in {folder} are damaged or not those recorded; train {folder.name} again.")
    try:
        text, content = (folder / SPEC_FILE).read_bytes(), (folder / WEIGHTS_FILE).read_bytes()
        spec = BlockSpec.model_validate_json(text)
        if hashlib.sha256(text).hexdigest() != sha256 or hashlib.sha256(content).hexdigest() != spec.weights_sha256:
            raise damaged
        tensors = load(content)
    except (OSError, ValidationError, SafetensorError):
        raise damaged from None
    if max(spec.after) >= len(model.get_decoder().layers):
        raise damaged
    made = expand_blocks(model, spec.after)
    try:
        for index, block in enumerate(made):
            prefix = f"{index}."
            own = {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
            block.requires_grad_(False).load_state_dict(own)
            block.eval()
        yield
    except RuntimeError as error:
        if "state_dict" in str(error):
            raise damaged from None
        raise
    finally:
        remove_blocks(model, made)
