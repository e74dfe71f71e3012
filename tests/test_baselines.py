"""Orthogonal subspaces and block expansion: equal to the base model before training, saved and opened as systems."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from metamoe_backend.config import LoraSettings, TrainConfig, parse_config
from metamoe_backend.errors import ConfigError, StorageError
from metamoe_backend.models.adapters import hash_adapter, write_adapter
from metamoe_backend.models.base import LoadedBase, load_base
from metamoe_backend.models.baselines import (
    add_subspaces,
    choose_places,
    expand_blocks,
    extract_subspaces,
    remove_blocks,
)
from metamoe_backend.models.systems import open_system
from metamoe_backend.train import expert
from tests.recording import RecordingContext
from tests.test_training import NO_START, make_questions
from tests.tiny_models import make_tiny_base

TEXT = "Q: say red xxx\nA:"
TARGETS = ["q_proj", "k_proj", "gate_proj", "down_proj"]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def loaded(base_folder: Path) -> LoadedBase:
    return load_base(str(base_folder), "cpu")


def answer(loaded: LoadedBase, model=None) -> torch.Tensor:
    with torch.no_grad():
        return (model or loaded.model)(**loaded.tokenizer(TEXT, return_tensors="pt")).logits


def generate(loaded: LoadedBase, use_cache: bool) -> list[int]:
    tokens = loaded.tokenizer(TEXT, return_tensors="pt")
    with torch.no_grad():
        return loaded.model.generate(**tokens, max_new_tokens=12, do_sample=False, use_cache=use_cache)[0].tolist()


def make_config(base_folder: Path, method: str, **changes) -> TrainConfig:
    optim = {"steps": 12, "batch_size": 8, "learning_rate": 0.01, "max_tokens": 64, "save_every": 5}
    settings = {"name": "copy", "tasks": ["task0"], "base": str(base_folder), "device": "cpu", "optim": optim}
    return TrainConfig(**settings | {"method": method, "blocks": 2, "lora": {"rank": 4, "targets": TARGETS}} | changes)


def train(root: Path, config: TrainConfig, act=lambda done: None) -> RecordingContext:
    context = RecordingContext(root, act=act)
    questions = make_questions().assign(skill=None, expert=None)
    target = pd.DataFrame({"adapter": [config.name]})
    expert.compute({"questions": questions, "target": target, "start": NO_START}, config, context)
    return context


def test_subspaces_begin_as_the_base_model_and_their_change_is_a_plain_lora(tmp_path: Path, loaded) -> None:
    before, weights = answer(loaded), loaded.model.model.layers[0].mlp.gate_proj.weight.clone()
    lora = LoraSettings(rank=4, targets=TARGETS)
    model = add_subspaces(loaded.model, lora, 0)
    torch.testing.assert_close(answer(loaded, model), before, rtol=0, atol=1e-5)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {min(parameter.shape) for parameter in trained} == {4}
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    changed = answer(loaded, model)
    kept = extract_subspaces(model, lora, "float32")
    assert (kept.rank, kept.scale) == (8, 1.0) and kept.targets == sorted(TARGETS)
    write_adapter(tmp_path / "osf", kept, "tiny")
    fresh = load_base(loaded.name, "cpu")
    row = {"system": "osf", "kind": "baseline", "base": fresh.name, "path": "osf"}
    with open_system(fresh, row | {"sha256": hash_adapter(tmp_path / "osf")}, tmp_path):
        torch.testing.assert_close(answer(fresh), changed, rtol=0, atol=1e-4)
    assert torch.equal(weights, fresh.model.model.layers[0].mlp.gate_proj.weight)
    with pytest.raises(ConfigError, match=r"lora.rank is 16, but model.layers.0.self_attn.k_proj has 16 directions"):
        add_subspaces(fresh.model, LoraSettings(rank=16, targets=TARGETS), 0)


def test_a_step_in_a_subspace_leaves_the_strong_directions_alone(loaded) -> None:
    weight = loaded.model.model.layers[0].mlp.gate_proj.weight.clone()
    lora = LoraSettings(rank=4, targets=["gate_proj"])
    model = add_subspaces(loaded.model, lora, 0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model(**loaded.tokenizer(TEXT, return_tensors="pt")).logits.square().mean().backward()
    with torch.no_grad():
        for parameter in trained:
            parameter -= 0.1 * parameter.grad
    kept = extract_subspaces(model, lora, "float32")
    module = "model.layers.0.mlp.gate_proj"
    delta = kept.b[module] @ kept.a[module]
    strong, _, _ = torch.linalg.svd(weight, full_matrices=False)
    assert delta.norm() > 1e-4
    assert (strong[:, :-4].T @ delta).norm() < 1e-4 * delta.norm() + 1e-5


def test_new_blocks_begin_as_the_identity_and_leave_no_trace(loaded) -> None:
    before, cached = answer(loaded), generate(loaded, use_cache=True)
    made = expand_blocks(loaded.model, [0, 1])
    assert len(loaded.model.model.layers) == loaded.model.config.num_hidden_layers == 4
    assert torch.equal(answer(loaded), before) and generate(loaded, use_cache=True) == cached
    trained = {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[2] for name in trained} == {"1", "3"}
    with torch.no_grad():
        for block in made:
            block.mlp.down_proj.weight.normal_(std=0.3)
    assert not torch.equal(answer(loaded), before)
    assert generate(loaded, use_cache=True) == generate(loaded, use_cache=False), "every block has a cache of its own"
    remove_blocks(loaded.model, made)
    assert torch.equal(answer(loaded), before) and loaded.model.config.num_hidden_layers == 2
    assert generate(loaded, use_cache=True) == cached


def test_places_are_spread_evenly() -> None:
    assert choose_places(32, 8) == [3, 7, 11, 15, 19, 23, 27, 31]
    assert choose_places(30, 4) == [6, 14, 21, 29] and choose_places(2, 2) == [0, 1]
    with pytest.raises(ConfigError, match="blocks is 3, but the base model has 2 blocks"):
        choose_places(2, 3)


@pytest.mark.parametrize("method", ["osf", "expansion"])
def test_a_baseline_is_trained_saved_and_opened_as_a_system(tmp_path: Path, base_folder: Path, method: str) -> None:
    config = make_config(base_folder, method)
    context = train(tmp_path, config)
    system = context.rows("system").iloc[0]
    assert (system["system"], system["kind"]) == ("copy", "baseline")
    assert all(path.suffix in (".json", ".safetensors") for path in (tmp_path / system["path"]).iterdir())
    losses = context.rows("metric").query("name == 'loss'")["value"].tolist()
    assert losses[-1] < 0.9 * losses[0]
    loaded = load_base(str(base_folder), "cpu")
    before = answer(loaded)
    with open_system(loaded, system, tmp_path) as opened:
        assert opened.experts == [] and not torch.allclose(answer(loaded), before, atol=1e-2)
    assert torch.equal(answer(loaded), before)


@pytest.mark.parametrize("method", ["osf", "expansion"])
def test_a_killed_baseline_goes_on_to_the_same_bytes(tmp_path: Path, base_folder: Path, method: str) -> None:
    def kill(done: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    whole = train(tmp_path / "whole", make_config(base_folder, method)).rows("system")["sha256"].iloc[0]
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", make_config(base_folder, method), kill)
    assert train(tmp_path / "cut", make_config(base_folder, method)).rows("system")["sha256"].iloc[0] == whole


def test_damaged_blocks_are_a_sentence_and_leave_the_base_model_alone(tmp_path: Path, base_folder: Path) -> None:
    system = train(tmp_path, make_config(base_folder, "expansion")).rows("system").iloc[0]
    weights = tmp_path / system["path"] / "blocks.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    loaded = load_base(str(base_folder), "cpu")
    damaged = pytest.raises(StorageError, match="damaged or not those recorded; train copy again")
    with damaged, open_system(loaded, system, tmp_path):
        pass
    assert len(loaded.model.model.layers) == 2


def test_what_does_not_go_together() -> None:
    about = {"name": "x", "tasks": ["t"], "method": "osf"}
    with pytest.raises(ConfigError, match="start_from needs an adapter to train further, method osf has none"):
        parse_config(TrainConfig, about | {"start_from": "arith"})
    with pytest.raises(ConfigError, match="method osf trains the model's own weights: set optim.dtype to float32"):
        parse_config(TrainConfig, about | {"optim": {"dtype": "bfloat16"}})
