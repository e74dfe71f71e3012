"""How much memory a training will need, said in the form before it starts."""

from dataclasses import astuple

import streamlit as st

from metamoe_backend.config import MoeConfig, SequenceConfig, StageConfig, TrainConfig
from metamoe_backend.jobs.devices import list_devices
from metamoe_backend.memory import MemoryNeed, ModelShape, estimate_training, read_shape
from metamoe_backend.models.base import find_local_folder
from metamoe_backend.store.connection import Store
from metamoe_backend.store.experts import fetch_adapters
from pages.shared.i18n import _
from pages.shared.state import get_store, per_version

ROOM = 0.95
"""Share of a device's memory that tensors may take; the rest is the driver's and other programs'."""


def render_need(config: StageConfig, profile: str | None) -> None:
    """A line about the most it will need; a warning, with what to lower, where the device has less."""
    if not isinstance(config, TrainConfig | SequenceConfig | MoeConfig) or not _learns(config):
        return
    shape = _read_shape(config.base)
    if shape is None:
        st.caption(_("How much memory it needs is told once the base model has been fetched."))
        return
    need = _estimate(shape, config)
    total, *parts = (_size_text(size) for size in (need.total, *astuple(need)))
    text = _(
        "Needs at most about {total} of memory: model {weights}, trained {trained}, activations {activations}, "
        "answers {logits} (a batch of {n} questions of {tokens} tokens)."
    ).format(
        total=total, weights=parts[0], trained=parts[1], activations=parts[2], logits=parts[3],
        n=f"{config.optim.batch_size:,}", tokens=f"{config.optim.max_tokens:,}",
    )  # fmt: skip
    device, memory = (None, None) if profile is not None else _find_memory(config.device)
    if memory is None or need.total <= ROOM * memory:
        st.caption(text)
        return
    remedy = _(
        "{device} has {memory}: lower the batch size or the longest question, keep no activations (gradient "
        "checkpointing), or hold the base model in bfloat16 or 4 bits. Shorter questions need less."
    ).format(device=device, memory=_size_text(memory))
    st.warning(f"{text} {remedy}", icon=":material/memory_alt:")


def _size_text(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def _learns(config: TrainConfig | SequenceConfig | MoeConfig) -> bool:
    """Full training of OSF and of new blocks is another sum; mixtures may have nothing to train."""
    if isinstance(config, MoeConfig):
        return config.learns_by_gradients
    return not isinstance(config, TrainConfig) or config.method == "lora"


def _estimate(shape: ModelShape, config: TrainConfig | SequenceConfig | MoeConfig) -> MemoryNeed:
    processes = 1 if isinstance(config, SequenceConfig) else config.processes
    if not isinstance(config, MoeConfig):
        return estimate_training(shape, config.lora, config.optim, processes)
    # One that is still in training is taken to be as large as a fresh one.
    each = sum(out + into for name in config.lora.targets for out, into in shape.linear.get(name, []))
    sizes = {} if config.from_scratch else _load_sizes(get_store())
    experts = sum(sizes.get(name, config.lora.rank * each) for name in config.experts)
    learn = config.train == "router+experts"
    return estimate_training(
        shape, config.lora, config.optim, processes, trained=experts if learn else 0, frozen=0 if learn else experts
    )


@per_version
def _load_sizes(store: Store) -> dict[str, int]:
    adapters = fetch_adapters(store)
    return dict(zip(adapters["adapter"], adapters["parameters"].astype(int), strict=True))


@st.cache_data(show_spinner=False, ttl="1m")
def _read_shape(base: str) -> ModelShape | None:
    folder = find_local_folder(base)
    return None if folder is None else read_shape(folder)


@st.cache_data(show_spinner=False, ttl="5m")
def _find_memory(wanted: str) -> tuple[str, int | None]:
    """The device a run would get here, and its memory; of several GPUs the smallest."""
    devices = list_devices()
    gpus = [device for device in devices if device.name != "cpu"]
    named = [device for device in devices if device.name == wanted]
    choices = named or (gpus if wanted != "cpu" and gpus else devices[-1:])
    smallest = min(choices, key=lambda device: device.memory_bytes or 0)
    return smallest.name, smallest.memory_bytes
