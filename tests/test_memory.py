"""Memory of a training: the estimate against what autograd really keeps, and running out of it in one sentence."""

from pathlib import Path

import pytest
import torch

from metamoe_backend.config import LoraSettings, OptimSettings, TrainConfig
from metamoe_backend.errors import MemoryShortError
from metamoe_backend.jobs import worker
from metamoe_backend.jobs.run_folder import create_run
from metamoe_backend.memory import estimate_training, is_out_of_memory, list_remedies, read_shape
from metamoe_backend.models.base import find_local_folder
from metamoe_backend.stage import Stage
from metamoe_backend.train.expert import add_lora
from metamoe_backend.workspace import Workspace
from tests.fake_jobs import CountConfig
from tests.tiny_models import make_tiny_base

MLP = ["gate_proj", "up_proj", "down_proj"]
TOKENS, BATCH = 64, 2


def make_llama(dtype: str, inner: int) -> "torch.nn.Module":
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300, hidden_size=128, intermediate_size=inner, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).to(getattr(torch, dtype)).requires_grad_(False)


def count_kept(model: "torch.nn.Module") -> int:
    """Bytes of distinct tensors, parameters left out, that a forward pass keeps for the backward pass."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[int, object]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    ids = torch.zeros((BATCH, TOKENS), dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(input_ids=ids, logits_to_keep=torch.arange(1), use_cache=False).logits
        assert logits.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("targets", [MLP, ["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj", *MLP]])
@pytest.mark.parametrize("inner", [344, 512])
def test_the_estimate_holds_what_autograd_keeps(tmp_path: Path, dtype: str, targets: list[str], inner: int) -> None:
    model, lora = make_llama(dtype, inner), LoraSettings(targets=targets)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    shape = read_shape(tmp_path)
    assert shape is not None
    need = estimate_training(shape, lora, OptimSettings(batch_size=BATCH, max_tokens=TOKENS, dtype=dtype))
    assert need.weights == sum(each.numel() * each.element_size() for each in model.parameters())
    trained = add_lora(model, lora, 0).train()
    assert need.trained == 16 * sum(each.numel() for each in trained.parameters() if each.requires_grad)
    assert 1.0 <= need.activations / count_kept(trained) <= 1.5


def test_what_lowers_memory_lowers_the_estimate(tmp_path: Path) -> None:
    shape = read_shape(make_tiny_base(tmp_path / "base"))
    assert shape is not None

    def need(processes: int = 1, lora: dict | None = None, **optim: object) -> float:
        return estimate_training(shape, LoraSettings(**(lora or {})), OptimSettings(**optim), processes).total

    full = need()
    for less in (
        need(batch_size=8), need(max_tokens=192), need(gradient_checkpointing=True), need(dtype="bfloat16"),
        need(lora={"rank": 4}), need(lora={"four_bit": True}), need(processes=2),
    ):  # fmt: skip
        assert less < full


def test_a_folder_that_does_not_tell_has_no_shape(tmp_path: Path) -> None:
    assert read_shape(tmp_path) is None
    base = make_tiny_base(tmp_path / "base")
    assert find_local_folder(str(base)) == base and find_local_folder("nobody/nothing-of-this-name") is None
    (base / "model.safetensors").write_bytes(b"\xff" * 64)
    assert read_shape(base) is None
    (base / "config.json").write_text("[]")
    assert read_shape(base) is None


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_running_out_of_memory_is_named_with_what_to_lower(workspace: Workspace, error: Exception, named: bool) -> None:
    def compute(*_: object) -> None:
        raise error

    stages = {"count": Stage("count", CountConfig, (), (), lambda store, config: {}, compute)}
    run = create_run(workspace, "count", "a test", {}, "ana", {})
    assert worker.run(run.path, stages, "cpu") == (2 if named else 1) and is_out_of_memory(error) == named
    status = run.read_state()
    if named:
        assert status.error == "cpu ran out of memory; choose another device."
        assert status.failure == MemoryShortError.__name__
    else:
        assert "cannot be multiplied" in (status.error or "")


def test_remedies_leave_out_what_is_done_already() -> None:
    first = TrainConfig(name="a", plan="p", optim={"batch_size": 4})
    assert list_remedies(first)[0] == "lower optim.batch_size (it is 4)"
    done = {"batch_size": 1, "gradient_checkpointing": True, "dtype": "bfloat16"}
    second = TrainConfig(name="a", plan="p", optim=done)
    assert list_remedies(second) == ["lower optim.max_tokens (it is 384)", "choose another device"]
