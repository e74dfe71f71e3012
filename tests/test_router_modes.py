"""Routers of other papers: each equal to an obvious reference, and to PEFT's own where PEFT has one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metamoe_backend.models import gates
from metamoe_backend.models.adapters import read_adapter
from metamoe_backend.models.base import LoadedBase, load_base
from metamoe_backend.models.lora_moe import GateSettings, Mixture, attach_experts
from tests.tiny_models import HIDDEN, make_tiny_adapter, make_tiny_base

EXACT = {"atol": 1e-5, "rtol": 1e-5}
SIDES = ("q_proj", "down_proj")


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, base_folder) -> list[Path]:
    """Three experts of one shape, as PEFT's mixtures need them; each has one direction that stands out."""
    from safetensors.torch import load_file, save_file

    made = []
    for seed in range(3):
        folder = make_tiny_adapter(
            tmp_path_factory.mktemp("adapters") / f"e{seed}", base_folder, rank=4, seed=seed, size=0.15, targets=SIDES
        )
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if "lora_A" in name:
                tensor[0] *= 6
        save_file(tensors, path)
        made.append(folder)
    return made


@pytest.fixture
def loaded(base_folder) -> LoadedBase:
    return load_base(str(base_folder), "cpu")


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (3, 7), generator=torch.Generator().manual_seed(0))


def attach(loaded: LoadedBase, folders: list[Path], mode, **settings) -> Mixture:
    return attach_experts(loaded.model, [read_adapter(folder) for folder in folders], GateSettings(mode, **settings))


@torch.no_grad()
def answer(model, tokens: torch.Tensor, **inputs) -> torch.Tensor:
    return model(input_ids=tokens, use_cache=False, **inputs).logits


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_the_direction_of_an_expert_is_the_top_right_singular_vector(rank, inputs, outputs, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
    found = gates.find_directions(a, b)
    _, size, right = torch.linalg.svd((b @ a).double())
    assert torch.isclose(found.norm(), torch.tensor(1.0), atol=1e-5)
    # Equally large singular values have no one direction: what counts is how far B A stretches it.
    assert torch.isclose((b.double() @ (a.double() @ found.double())).norm(), size[0], rtol=1e-4)
    if len(size) == 1 or size[0] > 1.01 * size[1]:
        assert torch.isclose((found.double() @ right[0]).abs(), torch.tensor(1.0).double(), atol=1e-4)


def test_an_expert_that_changes_nothing_has_no_direction_and_is_not_chosen():
    nothing = gates.find_directions(torch.randn(2, 5), torch.zeros(3, 2))
    assert nothing.tolist() == [0] * 5
    scores = gates.score_arrow(torch.randn(1, 2, 5), torch.stack([nothing, torch.eye(5)[0]]))
    assert gates.token_top_k(scores, 1)[..., 0].tolist() == [[0, 0]]


def test_arrow_equals_pefts(loaded, base_folder, folders, tokens):
    from peft import create_arrow_model
    from peft.tuners.lora import ArrowConfig
    from transformers import AutoModelForCausalLM

    peft = create_arrow_model(
        base_model=AutoModelForCausalLM.from_pretrained(base_folder),
        task_specific_adapter_paths=[str(folder) for folder in folders],
        arrow_config=ArrowConfig(top_k=2, router_temperature=0.7),
    ).eval()
    expected = answer(peft, tokens)
    bare = answer(loaded.model, tokens)
    attach(loaded, folders, "arrow", top_k=2, temperature=0.7)
    found = answer(loaded.model, tokens)
    assert not torch.allclose(found, bare, atol=0.1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def make_peft_xlora(base_folder: Path, folders: list[Path]):
    from peft import XLoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(base_folder)
    base.config.use_cache = False
    config = XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=HIDDEN, layerwise_scalings=True, softmax_temperature=0.7,
        adapters={str(index): str(folder) for index, folder in enumerate(folders)},
    )  # fmt: skip
    torch.manual_seed(3)
    model = get_peft_model(base, config)
    torch.nn.init.normal_(model.base_model.internal_xlora_classifier.layers[0].weight)
    return model.eval()


def test_xlora_equals_pefts_with_the_same_classifier(loaded, base_folder, folders, tokens):
    peft = make_peft_xlora(base_folder, folders)
    expected = answer(peft, tokens)
    classifier = peft.base_model.internal_xlora_classifier.layers[0]
    mixture = attach(loaded, folders, "xlora", top_k=3, temperature=0.7, granularity="module")
    own = mixture.get_gate_weights()
    shapes = {tuple(weight.shape) for weight in own.values()}
    assert shapes == {(3, HIDDEN + 1)} and classifier.weight.shape == (3 * len(own), HIDDEN)
    joined = torch.cat([classifier.weight, classifier.bias[:, None]], dim=1).detach()
    mixture.set_gate_weights(dict(zip(own, joined.split(3), strict=True)))
    with mixture.record() as record:
        found = answer(loaded.model, tokens)
    scalings = peft.base_model.internal_xlora_scalings
    assert torch.stack(record.weights, 2).shape == scalings.shape
    torch.testing.assert_close(torch.stack(record.weights, 2), scalings, **EXACT)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_xlora_needs_whole_texts(loaded, folders, tokens):
    attach(loaded, folders, "xlora", top_k=2)
    with torch.no_grad():
        cache = loaded.model(input_ids=tokens, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="use_cache=False"):
            loaded.model(input_ids=tokens[:, :1], past_key_values=cache, use_cache=True)


def test_xlora_reads_a_packed_tree(loaded, folders, tokens):
    """The first pass obeys the mask and the positions, too."""
    prompt, first, second = tokens[:1, :3], tokens[:1, 3:5], tokens[:1, 5:]
    packed = torch.cat([prompt, first, second], 1)
    seen = torch.ones(7, 7).tril().bool()
    seen[5:, 3:5] = False
    mask = torch.zeros(1, 1, 7, 7).masked_fill(~seen, torch.finfo(torch.float32).min)
    attach(loaded, folders, "xlora", top_k=2).draw_gate_weights(0, 1.0)
    tree = answer(loaded.model, packed, attention_mask=mask, position_ids=torch.tensor([[0, 1, 2, 3, 4, 3, 4]]))
    alone = answer(loaded.model, torch.cat([prompt, second], 1))
    torch.testing.assert_close(tree[:, 5:], alone[:, 3:], **EXACT)


def test_phatgoose_compares_standardised_tokens_and_gates():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, 8, generator=generator), torch.randn(4, 8, generator=generator)
    found = gates.score_phatgoose(x, weight)
    for question in range(2):
        for place in range(3):
            for expert in range(4):
                token, gate = x[question, place].numpy(), weight[expert].numpy()
                correlation = np.corrcoef(token, gate)[0, 1]
                assert found[question, place, expert].item() == pytest.approx(correlation * np.sqrt(8), abs=1e-4)


def test_phatgooses_gates_learn_alone_and_side_by_side_alike(loaded, folders, tokens):
    """The gradient of one expert's gate comes from its own questions only, and is what it gets when it is alone."""
    owners = torch.eye(3)
    mixture = attach(loaded, folders, "phatgoose", top_k=2)
    mixture.draw_gate_weights(0)
    mixture.unfreeze(experts=False)
    mixture.set_owners(owners)
    loaded.model(input_ids=tokens, use_cache=False).logits.sum().backward()
    together = [site.weight.grad.clone() for site in mixture.sites]
    weights = mixture.get_gate_weights()
    mixture.detach()
    for expert in range(3):
        alone = attach(loaded, [folders[expert]], "phatgoose", top_k=1)
        alone.set_gate_weights({name: weight[expert : expert + 1] for name, weight in weights.items()})
        alone.unfreeze(experts=False)
        alone.set_owners(torch.ones(1, 1))
        loaded.model(input_ids=tokens[expert : expert + 1], use_cache=False).logits.sum().backward()
        for site, both in zip(alone.sites, together, strict=True):
            assert both[expert].abs().sum() > 0
            torch.testing.assert_close(site.weight.grad[0], both[expert], atol=1e-4, rtol=1e-3)
        alone.detach()


def test_phatgoose_does_not_learn_without_owners(loaded, folders, tokens):
    attach(loaded, folders, "phatgoose", top_k=2).unfreeze(experts=False)
    with pytest.raises(ValueError, match="set_owners"):
        loaded.model(input_ids=tokens, use_cache=False)


def test_loramoe_uses_all_experts(loaded, folders, tokens):
    mixture = attach(loaded, folders, "loramoe")
    mixture.draw_gate_weights(0, 1.0)
    with mixture.record() as record:
        answer(loaded.model, tokens)
    for weights in record.weights:
        assert (weights > 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 7))


@given(st.integers(0, 50), st.booleans())
def test_the_localised_balance_loss_against_its_formula(seed, kinds):
    rng = np.random.default_rng(seed)
    weights, counted = rng.dirichlet(np.ones(3), (4, 5)), rng.random((4, 5)) < 0.7
    owners = np.eye(3)[rng.integers(0, 3, 4)] if kinds else None
    z = []
    for question in range(4):
        for expert in range(3):
            importance = sum(weights[question, place, expert] for place in range(5) if counted[question, place])
            own = 1.0 if owners is None else (1.1 if owners[question, expert] else 0.9)
            z.append(importance * own)
    expected = np.var(z) / max(np.mean(z) ** 2, 1e-12)
    as_tensor = None if owners is None else torch.tensor(owners)
    found = gates.localised_balance_loss(torch.tensor(weights), torch.tensor(counted), as_tensor, 0.1)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_a_mixtures_balance_loss_is_the_modes_own(loaded, folders, tokens):
    mixture = attach(loaded, folders, "loramoe")
    mixture.draw_gate_weights(0, 1.0)
    mixture.set_owners(torch.eye(3))
    answer(loaded.model, tokens)
    real = torch.ones_like(tokens)
    each = [gates.localised_balance_loss(site.gates, real, torch.eye(3), 0.1) for site in mixture.sites]
    assert mixture.compute_balance_loss(real).item() == pytest.approx(torch.stack(each).mean().item())
