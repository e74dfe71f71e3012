"""What is published answers as the system it was made from, in MetaMoE, in PEFT and in plain transformers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import metamoe_backend
from metamoe_backend.errors import ConfigError, InputError, StorageError
from metamoe_backend.models.adapters import hash_adapter, read_adapter
from metamoe_backend.models.base import load_base
from metamoe_backend.models.lora_moe import GateSettings, attach_experts
from metamoe_backend.models.mixtures import ExpertEntry, MixtureSpec, write_mixture
from metamoe_backend.models.routers import TaskRouter
from metamoe_backend.models.systems import open_system
from metamoe_backend.sharing import load_system, merge_experts, publish_system
from tests.fake_encoder import install
from tests.tiny_models import make_tiny_adapter, make_tiny_base

EXACT = {"atol": 1e-4, "rtol": 1e-4}
TOKENS = torch.arange(60, 72)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def root(tmp_path, base) -> Path:
    """A workspace with two experts of different shape."""
    root = tmp_path / "workspace"
    make_tiny_adapter(root / "adapters" / "one", base, rank=2, alpha=3, seed=1, size=0.15)
    make_tiny_adapter(
        root / "adapters" / "two", base, rank=5, alpha=4, seed=2, size=0.15, targets=("q_proj", "up_proj")
    )
    return root


def make_system(root: Path, base: Path, mode: str, task_router: TaskRouter | None = None) -> dict:
    loaded = load_base(str(base), "cpu")
    experts = [read_adapter(root / "adapters" / name) for name in ("one", "two")]
    mixture = attach_experts(loaded.model, experts, GateSettings(mode, 1))
    mixture.draw_gate_weights(0, 1.0)
    entries = [ExpertEntry(name=e.name, sha256=e.sha256) for e in experts]
    reads = {"encoder": "minilm", "of": "question"} if task_router else {}
    spec = MixtureSpec(
        base=str(base), experts=entries, mode=mode, top_k=1, prior_strength=1.0, task_top_m=None, **reads
    )
    sha256 = write_mixture(root / "mixtures" / "both", spec, mixture.get_gate_weights(), task_router)
    return {
        "system": "both", "kind": "moe", "base": str(base), "path": "mixtures/both", "experts": ["one", "two"],
        "settings": json.dumps({"mode": mode}), "sha256": sha256,
    }  # fmt: skip


@torch.no_grad()
def answer_in_workspace(root: Path, base: Path, system: dict) -> torch.Tensor:
    with open_system(load_base(str(base), "cpu"), system, root) as opened:
        return opened.model(input_ids=TOKENS, use_cache=False).logits


def test_a_routed_mixture_stands_alone(root, base, tmp_path):
    system = make_system(root, base, "token")
    expected = answer_in_workspace(root, base, system)
    out = tmp_path / "shared"
    publish_system(system, root, out, "routed")
    shutil.rmtree(root)
    shared = metamoe_backend.load_system(out, base=str(base), device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(shared.loaded.model(input_ids=TOKENS, use_cache=False).logits, expected, **EXACT)
    assert shared.experts == ["one", "two"]
    assert str(base) not in (out / "moe.json").read_text(), "a path of this machine says nothing to others"
    text = (out / "README.md").read_text()
    assert "# both" in text and "load_system" in text


def test_generating_and_routing_in_a_few_lines(root, base, tmp_path, monkeypatch):
    encoder = install(monkeypatch)
    vectors = encoder.encode(["paint the wall", "sum two numbers"])
    router = TaskRouter(["one", "two"], np.asarray(vectors * 50, dtype=np.float32), np.zeros(2, dtype=np.float32))
    publish_system(make_system(root, base, "two-level", router), root, tmp_path / "shared", "routed")
    shared = load_system(tmp_path / "shared", base=str(base), device="cpu")
    routes = shared.route(["paint the wall", "sum two numbers"])
    assert routes.loc["paint the wall", "one"] > 0.5 and routes.loc["sum two numbers", "two"] > 0.5
    prompts = ["Q: paint the wall\nA:", "Q: sum two numbers\nA:"]
    together = shared.generate(prompts, max_new_tokens=5, questions=["paint the wall", "sum two numbers"])
    alone = [
        shared.generate([prompt], max_new_tokens=5, questions=[question])[0]
        for prompt, question in zip(prompts, ["paint the wall", "sum two numbers"], strict=True)
    ]
    assert together == alone and len(together) == 2


@pytest.mark.parametrize("kind", ["moe", "expert"])
def test_an_adapter_is_exact_in_peft(root, base, tmp_path, kind):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    system = make_system(root, base, "uniform")
    if kind == "expert":
        folder = root / "adapters" / "one"
        system |= {"system": "one", "kind": kind, "path": "adapters/one", "experts": [], "sha256": hash_adapter(folder)}
    publish_system(system, root, tmp_path / "shared", "adapter")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "shared").eval()
    with torch.no_grad():
        logits = model(input_ids=TOKENS).logits
    torch.testing.assert_close(logits, answer_in_workspace(root, base, system), **EXACT)
    shared = load_system(tmp_path / "shared", base=str(base), device="cpu")
    assert shared.experts == [] and shared.route(["x"]).shape == (1, 0)


def test_a_merged_model_needs_neither_peft_nor_metamoe(root, base, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    system = make_system(root, base, "uniform")
    publish_system(system, root, tmp_path / "shared", "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "shared").eval()
    with torch.no_grad():
        logits = model(input_ids=TOKENS).logits
    torch.testing.assert_close(logits, answer_in_workspace(root, base, system), **EXACT)
    assert AutoTokenizer.from_pretrained(tmp_path / "shared")("ab")["input_ids"]


def test_merging_is_the_weighted_sum_of_the_changes(root):
    experts = [read_adapter(root / "adapters" / name) for name in ("one", "two")]
    merged = merge_experts("sum", experts, [0.3, 2.0])
    for module in merged.a:
        expected = sum(
            weight * expert.scale * (expert.b[module] @ expert.a[module])
            for expert, weight in zip(experts, [0.3, 2.0], strict=True)
            if module in expert.a
        )
        torch.testing.assert_close(merged.scale * (merged.b[module] @ merged.a[module]), expected, **EXACT)


def test_what_cannot_be_published_is_said_and_nothing_is_left(root, base, tmp_path):
    system = make_system(root, base, "token")
    with pytest.raises(ConfigError, match="weighs its experts anew for every token"):
        publish_system(system, root, tmp_path / "shared", "adapter")
    with pytest.raises(ConfigError, match="is one adapter and routes nothing"):
        publish_system(system | {"kind": "expert"}, root, tmp_path / "shared", "routed")
    with pytest.raises(ConfigError, match="only adapters and mixtures are published"):
        publish_system(system | {"kind": "base"}, root, tmp_path / "shared", "model")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists; name a folder that does not"):
        publish_system(system, root, tmp_path / "there", "routed")
    shutil.rmtree(root / "adapters" / "two")
    with pytest.raises(StorageError, match="Expert two of mixture both is missing"):
        publish_system(system, root, tmp_path / "shared", "routed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "workspace"]
    with pytest.raises(InputError, match="holds neither"):
        load_system(tmp_path / "there")
