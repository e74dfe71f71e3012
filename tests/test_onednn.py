"""The faster road of linear modules: the same numbers up to rounding, and gradients as before."""

import copy
from functools import cache

import pytest
import torch
from torch import nn

from metamoe_backend.models import onednn

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
    onednn.multiply_by_onednn(linear)
    with torch.inference_mode():
        found = linear(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_gradients_and_other_precisions_go_as_before():
    linear, half = nn.Linear(8, 8), nn.Linear(8, 8).bfloat16()
    onednn.multiply_by_onednn(nn.ModuleList([linear, half]))
    linear(torch.ones(40, 8)).sum().backward()
    assert linear.weight.grad is not None and (linear.weight.grad == 40).all()
    assert "forward" not in vars(half)
    with torch.inference_mode():
        assert linear.bfloat16()(torch.ones(40, 8).bfloat16()).dtype == torch.bfloat16


def test_a_copy_reads_its_own_weights():
    linear = nn.Linear(4, 4, bias=False)
    onednn.multiply_by_onednn(linear)
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
