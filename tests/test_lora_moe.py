"""The wide gated LoRA is exact: against a plain loop over experts, against PEFT, with a cache, and after detaching."""

from pathlib import Path

import numpy as np
import pytest
import torch

from metamoe_backend.models.adapters import AdapterWeights, read_adapter
from metamoe_backend.models.base import LoadedBase, load_base
from metamoe_backend.models.gates import task_level, token_top_k
from metamoe_backend.models.lora_moe import GateSettings, WideLora, attach_experts
from tests.tiny_models import HIDDEN, make_tiny_adapter, make_tiny_base

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EXACT = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def loaded(base_folder) -> LoadedBase:
    return load_base(str(base_folder), "cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, base_folder) -> list[Path]:
    """Three experts: different ranks, scales and modules."""
    root = tmp_path_factory.mktemp("adapters")
    return [
        make_tiny_adapter(root / "math", base_folder, rank=2, alpha=4, seed=1, size=0.15),
        make_tiny_adapter(root / "logic", base_folder, rank=5, alpha=5, seed=2, size=0.15, targets=ALL),
        make_tiny_adapter(
            root / "words", base_folder, rank=3, alpha=1, seed=3, size=0.15, targets=("q_proj", "v_proj")
        ),
    ]


@pytest.fixture(scope="module")
def adapters(folders) -> list[AdapterWeights]:
    return [read_adapter(folder) for folder in folders]


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (4, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def answer(loaded: LoadedBase, tokens: torch.Tensor, **inputs) -> torch.Tensor:
    return loaded.model(input_ids=tokens, use_cache=False, **inputs).logits


class Attached:
    """Experts attached for the length of a `with`."""

    def __init__(self, loaded, adapters, settings, routes=None, seed=0):
        self.mixture = attach_experts(loaded.model, adapters, settings)
        if settings.mode != "arrow":
            self.mixture.draw_gate_weights(seed, size=1.0)
        self.mixture.set_routes(routes)

    def __enter__(self):
        return self.mixture

    def __exit__(self, *_):
        self.mixture.detach()


class Loop(torch.nn.Module):
    """y = W x + sum_e g_e scale_e B_e (A_e x), one expert after the other."""

    def __init__(self, linear, module, adapters, gate_input, compute_gates):
        super().__init__()
        self.linear, self.module, self.adapters = linear, module, adapters
        self.gate_input, self.compute_gates = gate_input, compute_gates

    def forward(self, x):
        y = self.linear(x)
        weights = self.compute_gates(self.gate_input.get("x", x))
        for index, adapter in enumerate(self.adapters):
            if self.module in adapter.a:
                delta = x @ adapter.a[self.module].T @ adapter.b[self.module].T
                y = y + weights[..., index : index + 1] * adapter.scale * delta
        return y


def run_loop(loaded, adapters, tokens, gate_weights, granularity, compute_gates):
    """Logits of the plain loop; `compute_gates(scores)` turns x W_g into gates."""
    model, undo, hooks = loaded.model, [], []
    for module in dict(model.named_modules()):
        if not any(module in adapter.a for adapter in adapters):
            continue
        parent, _, child = module.rpartition(".")
        site = {"module": module, "block": parent, "layer": parent.rpartition(".")[0]}[granularity]
        seen: dict[str, torch.Tensor] = {}
        if granularity != "module":

            def remember(_module, args, kwargs, seen=seen):
                seen["x"] = args[0] if args else kwargs["hidden_states"]

            hooks.append(model.get_submodule(site).register_forward_pre_hook(remember, with_kwargs=True))

        def gate(x, site=site):
            return compute_gates(x @ gate_weights[site].T)

        linear = model.get_submodule(module)
        undo.append((model.get_submodule(parent), child, linear))
        setattr(model.get_submodule(parent), child, Loop(linear, module, adapters, seen, gate))
    try:
        return answer(loaded, tokens)
    finally:
        for parent, child, linear in undo:
            setattr(parent, child, linear)
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("granularity", ["layer", "block", "module"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_it_equals_a_plain_loop_over_experts(loaded, adapters, tokens, granularity, k):
    settings = GateSettings("token", k, granularity=granularity)
    with Attached(loaded, adapters, settings) as mixture:
        wide = answer(loaded, tokens)
        weights = mixture.get_gate_weights()
    plain = run_loop(loaded, adapters, tokens, weights, granularity, lambda scores: token_top_k(scores, k))
    assert not torch.allclose(wide, answer(loaded, tokens), atol=0.1)
    torch.testing.assert_close(wide, plain, **EXACT)


def test_task_level_equals_the_loop_with_the_routes_as_gates(loaded, adapters, tokens):
    routes = np.random.default_rng(0).dirichlet(np.ones(3), 4)
    settings = GateSettings("task", 2)
    with Attached(loaded, adapters, settings, routes) as mixture:
        wide = answer(loaded, tokens)
        sites = [site.name for site in mixture.sites]
    gates = task_level(torch.tensor(routes, dtype=torch.float32), 2).unsqueeze(1)
    nothing = {site: torch.zeros(3, HIDDEN) for site in sites}
    plain = run_loop(loaded, adapters, tokens, nothing, "block", lambda _: gates)
    torch.testing.assert_close(wide, plain, **EXACT)


def run_peft(base_folder: Path, folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder).eval()
    with torch.no_grad():
        return model(input_ids=tokens).logits


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("mode", ["uniform", "token", "loramoe", "arrow", "xlora", "phatgoose"])
def test_one_expert_equals_peft(loaded, base_folder, folders, adapters, tokens, index, mode):
    with Attached(loaded, [adapters[index]], GateSettings(mode)):
        wide = answer(loaded, tokens)
    torch.testing.assert_close(wide, run_peft(base_folder, folders[index], tokens), **EXACT)


def test_rank_stabilised_lora_equals_peft(loaded, base_folder, tmp_path, tokens):
    folder = make_tiny_adapter(tmp_path / "x", base_folder, rank=4, alpha=3)
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 4', '"r": 4, "use_rslora": true'))
    with Attached(loaded, [read_adapter(folder)], GateSettings()):
        wide = answer(loaded, tokens)
    torch.testing.assert_close(wide, run_peft(base_folder, folder, tokens), **EXACT)


@pytest.mark.parametrize("mode", ["token", "uniform", "task", "two-level", "loramoe", "arrow", "xlora", "phatgoose"])
def test_equal_experts_equal_one_of_them(loaded, adapters, tokens, mode):
    expert = adapters[1]
    routes = np.random.default_rng(1).dirichlet(np.ones(3), 4) if mode in ("task", "two-level") else None
    with Attached(loaded, [expert] * 3, GateSettings(mode, 2), routes):
        many = answer(loaded, tokens)
    with Attached(loaded, [expert], GateSettings()):
        one = answer(loaded, tokens)
    torch.testing.assert_close(many, one, **EXACT)


@pytest.mark.parametrize("mode", ["task", "two-level"])
def test_a_question_sent_to_base_equals_the_bare_model_exactly(loaded, adapters, tokens, mode):
    bare = answer(loaded, tokens)
    routes = np.array([[0.1, 0.1, 0.1, 0.7], [0.7, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.4], [0.0, 0.0, 0.6, 0.4]])
    with Attached(loaded, adapters, GateSettings(mode, 2), routes) as mixture, mixture.record() as record:
        routed = answer(loaded, tokens)
    assert torch.equal(routed[0], bare[0]) and torch.equal(routed[2], bare[2])
    assert not torch.allclose(routed[1], bare[1], atol=0.1) and not torch.allclose(routed[3], bare[3], atol=0.1)
    for weights in record.weights:
        assert (weights[[0, 2]] == 0).all()
        torch.testing.assert_close(weights[[1, 3]].sum(-1), torch.ones(2, 9))


def test_two_level_with_a_mask_uses_only_the_questions_best_experts(loaded, adapters, tokens):
    routes = np.tile([0.2, 0.5, 0.3], (4, 1))
    with Attached(loaded, adapters, GateSettings("two-level", 2, task_top_m=1), routes):
        masked = answer(loaded, tokens)
    with Attached(loaded, [adapters[1]], GateSettings()):
        torch.testing.assert_close(masked, answer(loaded, tokens), **EXACT)


@pytest.mark.parametrize("mode", ["token", "two-level", "uniform"])
def test_a_forced_expert_answers_alone(loaded, adapters, tokens, mode):
    with Attached(loaded, [adapters[1]], GateSettings()):
        alone = answer(loaded, tokens)
    bare = answer(loaded, tokens)
    routes = np.tile([0.1, 0.1, 0.1, 0.7], (4, 1)) if mode == "two-level" else None
    with Attached(loaded, adapters, GateSettings(mode, 2), routes) as mixture:
        routed = answer(loaded, tokens)
        with mixture.force(1):
            torch.testing.assert_close(answer(loaded, tokens), alone, **EXACT)
        with mixture.force(None):
            assert torch.equal(answer(loaded, tokens), bare)
        assert torch.equal(answer(loaded, tokens), routed)


@pytest.mark.parametrize("mode", ["token", "xlora"])
@pytest.mark.parametrize("granularity", ["layer", "block", "module"])
def test_detaching_restores_the_model_bit_for_bit(loaded, adapters, tokens, granularity, mode):
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    names, bare = [name for name, _ in loaded.model.named_modules()], answer(loaded, tokens)
    with Attached(loaded, adapters, GateSettings(mode, 2, granularity=granularity)):
        assert any(isinstance(module, WideLora) for module in loaded.model.modules())
        with pytest.raises(ValueError, match="already carries experts"):
            attach_experts(loaded.model, adapters, GateSettings())
    after = loaded.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert [name for name, _ in loaded.model.named_modules()] == names
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())
    assert torch.equal(answer(loaded, tokens), bare)


@pytest.mark.parametrize("mode", ["token", "two-level", "loramoe", "arrow", "phatgoose"])
def test_generation_with_a_cache_equals_whole_passes(loaded, adapters, tokens, mode):
    routes = np.random.default_rng(2).dirichlet(np.ones(4), 4) if mode == "two-level" else None
    with Attached(loaded, adapters, GateSettings(mode, 2), routes) as mixture, mixture.record() as record:
        with torch.no_grad():
            output = loaded.model(input_ids=tokens[:, :4], use_cache=True)
            steps = [output.logits]
            for place in range(4, 9):
                output = loaded.model(
                    input_ids=tokens[:, place : place + 1], past_key_values=output.past_key_values, use_cache=True
                )
                steps.append(output.logits)
        in_steps = record.weights
        with mixture.record() as whole_record:
            whole = answer(loaded, tokens)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, **EXACT)
    for stepped, at_once in zip(in_steps, whole_record.weights, strict=True):
        torch.testing.assert_close(stepped, at_once, **EXACT)


def test_generate_runs_greedily(loaded, adapters, tokens):
    with Attached(loaded, adapters, GateSettings("token", 2)):
        made = loaded.model.generate(tokens, max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=256)
        last = answer(loaded, made[:, :-1])[:, -1].argmax(-1)
    assert torch.equal(made[:, -1], last)


def test_a_four_axis_mask_of_a_packed_tree_is_obeyed(loaded, adapters, tokens):
    """Two answers packed behind one prompt read as if each stood there alone."""
    prompt, first, second = tokens[:1, :4], tokens[:1, 4:6], tokens[:1, 6:9]
    packed = torch.cat([prompt, first, second], 1)
    seen = torch.ones(9, 9).tril().bool()
    seen[6:, 4:6] = False
    mask = torch.zeros(1, 1, 9, 9).masked_fill(~seen, torch.finfo(torch.float32).min)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 4, 5, 6]])
    with Attached(loaded, adapters, GateSettings("token", 2)):
        tree = answer(loaded, packed, attention_mask=mask, position_ids=positions, logits_to_keep=3)
        alone = answer(loaded, torch.cat([prompt, second], 1))[:, 4:]
    assert tree.shape[1] == 3
    torch.testing.assert_close(tree, alone, **EXACT)


def test_bfloat16_stays_bfloat16(base_folder, adapters, tokens):
    loaded = load_base(str(base_folder), "cpu", "bfloat16")
    with Attached(loaded, adapters, GateSettings("token", 2)) as mixture:
        logits = answer(loaded, tokens)
        assert logits.dtype == torch.bfloat16
        assert {site.weight.dtype for site in mixture.sites} == {torch.float32}
    full = load_base(str(base_folder), "cpu")
    with Attached(full, adapters, GateSettings("token", 3)):
        exact = answer(full, tokens)
    with Attached(loaded, adapters, GateSettings("token", 3)):
        rough = answer(loaded, tokens).float()
    similarity = torch.nn.functional.cosine_similarity(exact.flatten(), rough.flatten(), dim=0)
    assert similarity > 0.98


def test_the_record_names_layers_and_sites(loaded, adapters, tokens):
    with Attached(loaded, adapters, GateSettings("token", 2)) as mixture, mixture.record() as record:
        answer(loaded, tokens)
    assert record.layers == [0, 0, 1, 1]
    assert record.sites == ["self_attn", "mlp", "self_attn", "mlp"]
    assert record.experts == ["math", "logic", "words"]
    assert [tuple(weights.shape) for weights in record.weights] == [(4, 9, 3)] * 4
    with (
        Attached(loaded, adapters, GateSettings("uniform", granularity="module")) as mixture,
        mixture.record() as record,
    ):
        answer(loaded, tokens)
    assert record.sites[:2] == ["self_attn.q_proj", "self_attn.k_proj"] and len(record.weights) == 14
    assert all((weights == 1 / 3).all() for weights in record.weights)


def test_batches_of_different_sizes_are_not_mixed_in_a_record(loaded, adapters, tokens):
    with Attached(loaded, adapters, GateSettings("token", 2)) as mixture, mixture.record() as record:
        answer(loaded, tokens)
        answer(loaded, tokens[:2])
    with pytest.raises(ValueError, match="different sizes"):
        _ = record.weights


def test_routes_that_do_not_fit_are_refused(loaded, adapters, tokens):
    with Attached(loaded, adapters, GateSettings("two-level", 2)) as mixture:
        with pytest.raises(ValueError, match="needs set_routes"):
            answer(loaded, tokens)
        with pytest.raises(ValueError, match="have the shape"):
            mixture.set_routes(np.ones((4, 2)))
        mixture.set_routes(np.ones((3, 3)) / 3)
        with pytest.raises(ValueError, match="set for 3 rows, but the batch has 4"):
            answer(loaded, tokens)
    with (
        Attached(loaded, adapters, GateSettings("token", 2)) as mixture,
        pytest.raises(ValueError, match="no task level"),
    ):
        mixture.set_routes(np.ones((4, 3)) / 3)


def test_gates_and_experts_learn_only_when_unfrozen(loaded, adapters, tokens):
    with Attached(loaded, adapters, GateSettings("token", 1)) as mixture:
        assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
        gates = mixture.unfreeze(experts=False)
        loaded.model(input_ids=tokens, labels=tokens).loss.backward()
        assert len(gates) == 4 and all(gate.grad.abs().sum() > 0 for gate in gates)
        assert sum(parameter.requires_grad for parameter in loaded.model.parameters()) == 4
        everything = mixture.unfreeze(experts=True)
        assert len(everything) == 4 + 2 * 14
        loss = mixture.compute_balance_loss(torch.ones_like(tokens))
        assert loss.item() >= 0 and loss.requires_grad


def test_an_expert_is_given_back_as_it_came(loaded, adapters):
    with Attached(loaded, adapters, GateSettings()) as mixture:
        for index, adapter in enumerate(adapters):
            found = mixture.get_expert(index, torch.float32)
            assert found.modules == adapter.modules
            assert all(torch.equal(found.a[m], adapter.a[m]) and torch.equal(found.b[m], adapter.b[m]) for m in found.a)


@pytest.mark.model
def test_one_expert_equals_peft_on_the_packaged_model(tmp_path):
    from peft import LoraConfig, get_peft_model

    loaded = load_base("smollm2-135m", "cpu")
    inputs = loaded.tokenizer("Question: What is 12 + 30?\nAnswer:", return_tensors="pt")
    torch.manual_seed(0)
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=list(ALL), init_lora_weights="gaussian", task_type="CAUSAL_LM"
    )
    model = get_peft_model(loaded.model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
    model.save_pretrained(tmp_path / "expert")
    bare = model.unload()
    with Attached(loaded, [read_adapter(tmp_path / "expert", bare)], GateSettings()), torch.no_grad():
        found = loaded.model(**inputs).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not torch.allclose(found, bare(**inputs).logits, atol=0.5)
