"""The bank: what may be imported, and how it is published."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from metamoe_backend.config import ImportAdapterConfig
from metamoe_backend.errors import InputError
from metamoe_backend.experts import bank
from metamoe_backend.jobs.run_folder import RunFolder, create_run
from metamoe_backend.models.adapters import read_adapter
from metamoe_backend.workspace import Workspace
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


def publish(root: Path, text: str, run_id: str = "run-1") -> tuple[str, RecordingContext]:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text(text)

    context = RecordingContext(root, run_id)
    return bank.publish_folder(context, root / "adapters", "guest", write), context


def read_bank(root: Path) -> dict[str, str]:
    return {path.name: (path / "weights").read_text() for path in (root / "adapters").iterdir()}


def kill_between_the_renames(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the folders as a worker does that is killed when the earlier one is set aside and the new one not named."""

    def die(*_: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(bank, "_rename_to_free_name", die)
        patch.setattr(bank, "_put_back", lambda *_: None)
        publish(root, "killed")


@pytest.mark.parametrize("kills", [1, 2])
def test_what_a_killed_run_set_aside_is_put_back_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    publish(tmp_path, "early")
    for _ in range(kills):
        kill_between_the_renames(tmp_path, monkeypatch)
        assert set(read_bank(tmp_path).values()) == {"early"} and "guest" not in read_bank(tmp_path)
        with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
            patch.setattr(bank, "sync_folder", lambda _: (_ for _ in ()).throw(OSError("full")))
            publish(tmp_path, "unfinished")
        assert read_bank(tmp_path) == {"guest": "early"}
    assert publish(tmp_path, "whole")[0] == "guest"
    assert read_bank(tmp_path) == {"guest": "whole"}


def test_what_was_set_aside_makes_room_for_what_took_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, "early")
    kill_between_the_renames(tmp_path, monkeypatch)
    assert publish(tmp_path, "another's", "run-2")[0] == "guest"
    assert publish(tmp_path, "whole")[0] == "guest-2"
    assert read_bank(tmp_path) == {"guest": "another's", "guest-2": "whole"}


def test_an_older_run_that_waited_may_work_with_what_was_published(tmp_path: Path) -> None:
    """It was asked for before, and has read its rows since."""
    _, context = publish(tmp_path, "early", "run-2")
    published = RunFolder(context.scratch.parent)
    published.output.mkdir()
    system = {
        "system": "guest", "kind": "expert", "base": "tiny", "path": "adapters/guest", "experts": [[]],
        "settings": "{}", "sha256": "1", "created_at": context.created_at,
    }  # fmt: skip
    published.emit("system", pd.DataFrame(system))
    given = {"adapters": pd.DataFrame({"adapter": ["guest"], "sha256": ["1"]})}
    create_run(Workspace(tmp_path), "moe", "older", {}, "ana", given, "run-0")
    assert publish(tmp_path, "second", "run-2")[0] == "guest", "nobody older reads what is made later, but who waited"
    create_run(Workspace(tmp_path), "moe", "waited", {}, "ana", given, "run-1", after=["run-2"])
    name, again = publish(tmp_path, "third", "run-2")
    assert name == "guest-2" and read_bank(tmp_path)["guest"] == "second"
    assert again.messages == ["Run run-1 works with guest as this run left it: what follows gets another name."]


def test_free_names() -> None:
    assert bank.find_free_name("logic", {"base"}) == "logic"
    assert bank.find_free_name("logic", {"logic", "logic-2"}) == "logic-3"
