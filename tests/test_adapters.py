"""Adapters: what PEFT writes is read as it is meant, everything else is refused with a sentence."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from metamoe_backend.errors import InputError
from metamoe_backend.models.adapters import find_layer, hash_adapter, read_adapter, write_adapter
from metamoe_backend.models.base import load_base
from tests.tiny_models import make_tiny_adapter, make_tiny_base

KEY = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def model(base_folder):
    return load_base(str(base_folder), "cpu").model


@pytest.fixture
def folder(tmp_path, base_folder) -> Path:
    return make_tiny_adapter(tmp_path / "math", base_folder, rank=3, alpha=6)


def edit_config(folder: Path, **values) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder: Path, change) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_good_folder(folder, model):
    weights = read_adapter(folder, model)
    assert (weights.name, weights.rank, weights.alpha, weights.scale) == ("math", 3, 6.0, 2.0)
    assert weights.targets == ["down_proj", "gate_proj", "up_proj"]
    assert weights.sha256 == hash_adapter(folder)
    assert weights.modules[0] == "model.layers.0.mlp.down_proj"
    assert weights.parameters == sum(t.numel() for t in load_file(folder / "adapter_model.safetensors").values())


def test_rank_stabilised_scale_survives_writing(folder, tmp_path):
    edit_config(folder, use_rslora=True)
    weights = read_adapter(folder)
    assert weights.scale == pytest.approx(6 / 3**0.5)
    write_adapter(tmp_path / "copy", weights, "tiny")
    again = read_adapter(tmp_path / "copy")
    assert again.scale == weights.scale and torch.equal(again.a[weights.modules[0]], weights.a[weights.modules[0]])


def test_peft_reads_what_is_written(folder, tmp_path, model):
    from peft import LoraConfig

    write_adapter(tmp_path / "copy", read_adapter(folder), "tiny")
    config = LoraConfig.from_pretrained(tmp_path / "copy")
    assert (config.r, config.lora_alpha, set(config.target_modules)) == (3, 6.0, {"gate_proj", "up_proj", "down_proj"})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"peft_type": "LOHA"}, "'LOHA' adapter; only peft_type LORA"),
        ({"use_dora": True}, "it is a DoRA adapter"),
        ({"bias": "all"}, "it trains biases"),
        ({"modules_to_save": ["lm_head"]}, "it replaces whole modules"),
        ({"rank_pattern": {"q_proj": 2}}, "its ranks differ"),
        ({"alpha_pattern": {"q_proj": 2}}, "its scales differ"),
        ({"fan_in_fan_out": True}, "transposed"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
        ({"layer_replication": [[0, 2]]}, "it repeats layers"),
        ({"r": 4}, "has rank 3 in A and 3 in B, but adapter_config.json says r = 4"),
        ({"r": 0}, "a rank from 1 to 512 is needed"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "it names code of its own"),
        ({"r": 100_000}, "r is '100000'; a rank from 1 to 512 is needed"),
        ({"r": 513}, "a rank from 1 to 512 is needed"),
        ({"r": "8"}, "a rank from 1 to 512 is needed"),
        ({"lora_alpha": None}, "a number above 0 is needed"),
        ({"lora_alpha": -1}, "a number above 0 is needed"),
    ],
)
def test_settings_that_are_refused(folder, settings, sentence):
    edit_config(folder, **settings)
    with pytest.raises(InputError, match=sentence):
        read_adapter(folder)


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "x.pt", "x.pkl", "code.py", "more.safetensors", "training_args.bin"]
)
def test_other_files_are_refused(folder, name):
    (folder / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"holds {name!r}; only .* are accepted"):
        read_adapter(folder)


def test_a_folder_inside_is_refused_and_a_readme_is_not(folder):
    (folder / "README.md").write_text("# hello")
    read_adapter(folder)
    (folder / "checkpoint-10").mkdir()
    with pytest.raises(InputError, match="holds 'checkpoint-10'"):
        read_adapter(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"has no {name}"):
        read_adapter(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\x00", "[" * 100_000])
def test_a_broken_config_is_named(folder, text):
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        read_adapter(folder)


def header(entries, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"123", struct.pack("<Q", 1 << 60) + b"{}", header(b"{broken"), header([1]), header({"a": 1}),
        header({"a": {"dtype": "F32"}}), header({"a": ENTRY}), header({"a": ENTRY | {"data_offsets": [0]}}),
        header({"a": ENTRY}, b"\0" * 9), header(b"[" * 100_000),
    ],
)  # fmt: skip
def test_a_file_that_is_no_whole_safetensors_file(folder, content):
    (folder / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        read_adapter(folder)


def test_offsets_that_contradict_the_shapes_are_refused(folder):
    entry = {"dtype": "F32", "shape": [3, 3], "data_offsets": [0, 4]}
    content = header({KEY.format("A"): entry, KEY.format("B"): entry}, b"\0" * 4)
    (folder / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        read_adapter(folder)


def test_tensors_that_are_refused(folder, base_folder, tmp_path):
    def check(change, sentence):
        make_tiny_adapter(folder, base_folder, rank=3, alpha=6)
        edit_weights(folder, change)
        with pytest.raises(InputError, match=sentence):
            read_adapter(folder)

    check(lambda t: t.update(extra=torch.zeros(1, 1)), "'extra', which is no LoRA matrix")
    check(lambda t: t.pop(KEY.format("B")), "has only one of lora_A and lora_B")
    check(lambda t: t.update({KEY.format("A"): torch.zeros(3)}), "LoRA matrices have two axes")
    check(lambda t: t.update({KEY.format("A"): torch.zeros(3, 32, dtype=torch.int64)}), "holds I64 numbers")
    check(lambda t: t.update({KEY.format("A"): torch.full((3, 32), torch.nan)}), "infinite or undefined numbers")
    check(lambda t: t.clear(), "holds no LoRA matrices")


def test_an_adapter_of_another_base_is_refused(folder, model):
    edit_weights(folder, lambda t: t.update({KEY.format("A"): torch.zeros(3, 33)}))
    with pytest.raises(InputError, match=r"is 33 -> 64 at model.layers.0.mlp.up_proj, the base model is 32 -> 64"):
        read_adapter(folder, model)
    edit_weights(
        folder, lambda t: t.update({k.replace("layers.0", "layers.7"): t.pop(k) for k in list(t) if "layers.0" in k})
    )
    with pytest.raises(InputError, match=r"model.layers.7.mlp.down_proj, which the base model has not"):
        read_adapter(folder, model)


def test_only_linear_modules_can_be_adapted(folder, model):
    def rename(tensors):
        for letter in "AB":
            tensors[KEY.format(letter).replace("mlp.up_proj", "mlp.act_fn")] = tensors[KEY.format(letter)].clone()

    edit_weights(folder, rename)
    with pytest.raises(InputError, match="only linear modules can carry experts"):
        read_adapter(folder, model)


def test_find_layer():
    assert find_layer("model.layers.12.mlp.up_proj") == 12
    assert find_layer("transformer.h.3.attn") == 3
    assert find_layer("lm_head") == -1
