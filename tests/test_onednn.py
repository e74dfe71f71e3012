"""The faster road of linear modules: the same numbers up to rounding, and gradients as before."""

import copy
from functools import cache
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from metamoe_backend.models import onednn
from metamoe_backend.models.adapters import read_adapter
from metamoe_backend.models.base import load_base
from metamoe_backend.models.lora_moe import GateSettings, WideLora, attach_experts
from tests.tiny_models import make_tiny_adapter, make_tiny_base

IS_FASTER = onednn.is_faster


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever processor this is: oneDNN multiplies on all of them."""
    monkeypatch.setattr(onednn, "is_faster", cache(lambda: True))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(3, 15, 64), (7, 64), (0, 64)])
def test_products_are_the_same_up_to_rounding(shape: tuple[int, ...], bias: bool):
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 48, bias=bias), torch.randn(shape)
    expected = linear(x).detach()
    onednn.prepare_linears(linear)
    with torch.inference_mode():
        found = linear(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_gradients_and_other_precisions_go_as_before():
    linear, half = nn.Linear(8, 8), nn.Linear(8, 8).bfloat16()
    onednn.prepare_linears(nn.ModuleList([linear, half]))
    linear(torch.ones(40, 8)).sum().backward()
    assert linear.weight.grad is not None and (linear.weight.grad == 40).all()
    assert "forward" not in vars(half)
    with torch.inference_mode():
        assert linear.bfloat16()(torch.ones(40, 8).bfloat16()).dtype == torch.bfloat16


def test_a_copy_reads_its_own_weights():
    linear = nn.Linear(4, 4, bias=False)
    onednn.prepare_linears(linear)
    other = copy.deepcopy(linear)
    with torch.no_grad():
        other.weight.zero_()
        assert not other(torch.ones(40, 4)).any() and linear(torch.ones(40, 4)).any()


@pytest.mark.parametrize(("vendor", "expected"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_processors_name_decides(vendor: str, expected: bool, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {vendor}\n")
    monkeypatch.setattr(onednn, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert IS_FASTER.__wrapped__() is expected
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert IS_FASTER.__wrapped__() is False


def count_packings(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Called each time a weight is packed from now on."""
    packing = Mock(wraps=torch.ops.mkldnn._reorder_linear_weight)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", packing)
    return packing


def test_a_weight_is_packed_once_and_again_when_it_has_changed(monkeypatch):
    linear, x = nn.Linear(64, 48), torch.randn(40, 64)
    onednn.prepare_linears(linear)
    packing = count_packings(monkeypatch)
    with torch.no_grad():
        first = linear(x)
        assert torch.equal(linear(x), first)
        assert packing.call_count == 1
        linear.weight.mul_(2)
        torch.testing.assert_close(linear(x) - linear.bias, 2 * (first - linear.bias), atol=1e-5, rtol=1e-5)
        linear.weight = nn.Parameter(torch.zeros(48, 64))
        torch.testing.assert_close(linear(x), linear.bias.expand(40, 48))
    assert packing.call_count == 3


@pytest.mark.parametrize(("times", "packs"), [(9, True), (7, False)])
def test_weights_are_packed_where_memory_has_room(monkeypatch, times: int, packs: bool):
    linear, x = nn.Linear(64, 48), torch.randn(40, 64)
    expected = linear(x).detach()
    memory = SimpleNamespace(total=times * linear.weight.nbytes)
    monkeypatch.setattr(onednn.psutil, "virtual_memory", lambda: memory)
    onednn.prepare_linears(linear)
    packing = count_packings(monkeypatch)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x), expected, atol=1e-5, rtol=1e-5)
    assert packing.called is packs


@pytest.mark.parametrize("by_onednn", [True, False])
def test_experts_of_equal_gates_are_merged_while_none_is_forced(monkeypatch, tmp_path, by_onednn: bool):
    monkeypatch.setattr(onednn, "is_faster", cache(lambda: by_onednn))
    folder = make_tiny_base(tmp_path / "base")
    model = load_base(str(folder), "cpu").model
    experts = [
        read_adapter(make_tiny_adapter(tmp_path / name, folder, rank=rank, seed=rank, size=0.15))
        for name, rank in (("math", 2), ("logic", 5))
    ]
    tokens = torch.arange(48)[None]

    @torch.no_grad()
    def answer() -> torch.Tensor:
        return model(input_ids=tokens, use_cache=False).logits

    bare = answer()
    mixture = attach_experts(model, experts, GateSettings("uniform"))
    merging = Mock(wraps=WideLora._merge)
    monkeypatch.setattr(WideLora, "_merge", lambda lora, site: merging(lora, site))
    merged = answer()
    assert torch.equal(answer(), merged)
    assert merging.call_count == len(mixture.loras)
    assert not torch.allclose(merged, bare, atol=1e-3)
    with mixture.force(None):
        torch.testing.assert_close(answer(), bare, atol=1e-5, rtol=1e-5)
    with mixture.force(1):
        assert not torch.allclose(answer(), merged, atol=1e-3)
    with monkeypatch.context() as apart:
        apart.setattr(onednn, "keeps_copies", lambda *_: False)
        torch.testing.assert_close(merged, answer(), atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            for lora in mixture.loras.values():
                lora.b.mul_(3)
        changed = answer()
    assert not torch.allclose(changed, merged, atol=1e-3)
    torch.testing.assert_close(answer(), changed, atol=1e-5, rtol=1e-5)
    mixture.detach()
    assert torch.equal(answer(), bare)
