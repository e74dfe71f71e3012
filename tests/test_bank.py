"""The bank: what may be imported, and how it is published."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from metamoe_backend.config import ImportAdapterConfig
from metamoe_backend.errors import InputError
from metamoe_backend.experts import bank
from metamoe_backend.models.adapters import read_adapter
from tests.recording import RecordingContext
from tests.tiny_models import make_tiny_adapter, make_tiny_base


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def bring_in(root: Path, base: Path, source: str, name: str = "guest", run_id: str = "run-1") -> RecordingContext:
    context = RecordingContext(root, run_id)
    config = ImportAdapterConfig(source=source, name=name, base=str(base), trained_on=["gsm8k"])
    bank.compute({}, config, context)
    return context


def test_an_import_is_copied_and_recorded(tmp_path: Path, base_folder: Path) -> None:
    source = make_tiny_adapter(tmp_path / "source", base_folder, rank=2, alpha=4, targets=["q_proj", "v_proj"])
    (source / "README.md").write_text("hello")
    settings = json.loads((source / "adapter_config.json").read_text()) | {"author": "somebody"}
    (source / "adapter_config.json").write_text(json.dumps(settings))
    context = bring_in(tmp_path, base_folder, str(source))

    folder = tmp_path / "adapters" / "guest"
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    kept = json.loads((folder / "adapter_config.json").read_text())
    assert "author" not in kept and kept["base_model_name_or_path"] == "tiny"
    weights, original = read_adapter(folder), read_adapter(source)
    assert all((weights.a[module] == original.a[module]).all() for module in original.modules)
    adapter, system = context.rows("adapter").iloc[0], context.rows("system").iloc[0]
    assert (adapter["source"], adapter["rank"], adapter["alpha"]) == ("imported", 2, 4.0)
    assert adapter["sha256"] == system["sha256"] == weights.sha256
    assert list(adapter["trained_on"]) == ["gsm8k"] and list(adapter["skills"]) == [] and pd.isna(adapter["plan"])
    assert (system["system"], system["kind"], system["path"]) == ("guest", "expert", "adapters/guest")


def test_pickles_are_refused(tmp_path: Path, base_folder: Path) -> None:
    source = make_tiny_adapter(tmp_path / "source", base_folder)
    (source / "adapter_model.bin").write_bytes(b"\x80\x04pickle")
    with pytest.raises(InputError, match=r"adapter_model\.bin"):
        bring_in(tmp_path, base_folder, str(source))
    (source / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors"):
        bring_in(tmp_path, base_folder, str(source))
    assert not (tmp_path / "adapters").exists()


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, base_folder: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shape = json.loads((base_folder / "config.json").read_text()) | {"intermediate_size": 48}
    (other / "config.json").write_text(json.dumps(shape))
    source = make_tiny_adapter(tmp_path / "source", other)
    with pytest.raises(InputError, match="choose the base it was made for"):
        bring_in(tmp_path, base_folder, str(source))
    assert not (tmp_path / "adapters").exists()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("no/such/folder/here", "neither a folder here nor a hub id"),
        ("/nowhere/at/all", "neither a folder here nor a hub id"),
        ("file.safetensors", "is a file, not a folder; name a local PEFT folder"),
    ],
)
def test_a_source_that_is_nothing(
    tmp_path: Path, base_folder: Path, source: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=sentence):
        bring_in(tmp_path, base_folder, source)


def test_an_import_reads_no_weights_of_the_base_model(tmp_path: Path, base_folder: Path) -> None:
    base = Path(shutil.copytree(base_folder, tmp_path / "base"))
    (base / "model.safetensors").unlink()
    source = make_tiny_adapter(tmp_path / "source", base)
    assert bring_in(tmp_path, base, str(source)).rows("adapter")["adapter"].tolist() == ["guest"]


def test_nothing_half_written_is_ever_seen(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tiny_adapter(tmp_path / "source", base_folder)

    def break_off(folder: Path, *_: object) -> None:
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(bank, "write_adapter", break_off)
        with pytest.raises(OSError, match="disk full"):
            bring_in(tmp_path, base_folder, str(source))
    assert list((tmp_path / "adapters").iterdir()) == []
    bring_in(tmp_path, base_folder, str(source))
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == ["guest"]


def test_a_taken_folder_is_never_written_over(tmp_path: Path, base_folder: Path) -> None:
    first = make_tiny_adapter(tmp_path / "first", base_folder, seed=1)
    second = make_tiny_adapter(tmp_path / "second", base_folder, seed=2)
    bring_in(tmp_path, base_folder, str(first))
    context = bring_in(tmp_path, base_folder, str(second), run_id="run-2")
    assert context.rows("adapter")["adapter"].tolist() == ["guest-2"]
    hashes = [read_adapter(tmp_path / "adapters" / name).sha256 for name in ("guest", "guest-2")]
    assert hashes[0] != hashes[1]


def test_free_names() -> None:
    assert bank.find_free_name("logic", {"base"}) == "logic"
    assert bank.find_free_name("logic", {"logic", "logic-2"}) == "logic-3"
