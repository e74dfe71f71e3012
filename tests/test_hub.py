"""Models by hub id through the real client, against a small hub that this test serves; and what is said without one.

Each case runs in a process of its own: the hub's address is read once, when its library is imported.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.tiny_models import make_tiny_adapter, make_tiny_base

ROOT = Path(__file__).parent.parent
COMMIT = "a" * 40
OPEN = """
import json, sys
from metamoe_backend import hub
from metamoe_backend.embed import load_encoder
from metamoe_backend.errors import UserError
from metamoe_backend.experts.bank import _find_source
from metamoe_backend.ingest.hub import read_hub
from metamoe_backend.models.base import load_base, load_outline
hub.PROBE_TIMEOUT_S = 0.5
def layers(model):
    return model.config.num_hidden_layers
doors = {
    "base": lambda name: layers(load_base(name, "cpu").model),
    "outline": lambda name: layers(load_outline(name)),
    "adapter": lambda name: sorted(path.name for path in _find_source(name).iterdir()),
    "encoder": load_encoder,
    "data": lambda name: list(read_hub(name, None, "test")),
}
for door, name in json.loads(sys.argv[1]):
    try:
        print(json.dumps(doors[door](name)))
    except UserError as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""


class Hub:
    """Folders served as model repositories, as the hub's client asks for them; `asked` keeps the files given out."""

    def __init__(self, repos: dict[str, Path]) -> None:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                path = self.path.split("?")[0].lstrip("/")
                repo = next((name for name in repos if name in path), None)
                if repo is None:
                    self.answer(401 if "locked" in path else 404, b"{}", self.refusal(path))
                elif "/tree/" in path:
                    files = [file for file in repos[repo].iterdir() if file.is_file()]
                    rows = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "b" * 40} for f in files]
                    self.answer(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})
                elif path.startswith("api/"):
                    siblings = [{"rfilename": file.name} for file in repos[repo].iterdir()]
                    info = {"id": repo, "sha": COMMIT, "tags": [], "siblings": siblings}
                    self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
                else:
                    content = (repos[repo] / path.rsplit("/", 1)[1]).read_bytes()
                    if self.command == "GET":
                        asked.append(path.rsplit("/", 1)[1])
                    etag = hashlib.sha256(content).hexdigest()
                    self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})

            do_HEAD = do_GET

            def refusal(self, path: str) -> dict[str, str]:
                return {"X-Error-Code": "GatedRepo" if "locked" in path else "RepoNotFound"}

            def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        self.asked = asked
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("repos")
    base = make_tiny_base(folder / "tiny")
    (base / "modeling_trap.py").write_text("raise SystemExit('code from a model ran')")
    (base / "pytorch_model.bin").write_bytes(b"\x80\x04pickle")
    adapter = make_tiny_adapter(folder / "lora", base)
    (adapter / "README.md").write_text("a card")
    return {"acme/tiny": base, "acme/lora": adapter}


@pytest.fixture
def hub(repos: dict[str, Path]) -> Iterator[Hub]:
    served = Hub(repos)
    yield served
    served.close()


def run(arguments: list[str], home: Path, address: str) -> str:
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": address}
    ours = ("http_proxy", "https_proxy", "all_proxy", "hf_hub_offline", "transformers_offline")
    inherited = {name: value for name, value in os.environ.items() if name.lower() not in ours}
    done = subprocess.run(
        [sys.executable, *arguments], env=inherited | settings, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def open_all(doors: list[tuple[str, str]], home: Path, address: str) -> list[object]:
    return [json.loads(line) for line in run(["-c", OPEN, json.dumps(doors)], home, address).splitlines()]


def test_a_base_model_and_an_adapter_come_by_hub_id_and_are_there_without_it_later(hub: Hub, tmp_path: Path) -> None:
    doors = [("outline", "acme/tiny"), ("base", "acme/tiny"), ("adapter", "acme/lora")]
    both = ["adapter_config.json", "adapter_model.safetensors"]
    assert open_all(doors[:1], tmp_path, hub.address) == [2]
    assert hub.asked == ["config.json"], "the outline needs no weights"
    assert open_all(doors, tmp_path, hub.address) == [2, 2, both]
    assert {"model.safetensors", "tokenizer.json", *both} <= set(hub.asked)
    assert not {"modeling_trap.py", "pytorch_model.bin", "README.md"} & set(hub.asked), "no code, no pickle"
    hub.close()
    assert open_all(doors, tmp_path, hub.address) == [2, 2, both]


def test_a_hub_adapter_is_imported_against_a_hub_base_model(hub: Hub, tmp_path: Path) -> None:
    command = ["-m", "metamoe_backend", "--workspace", str(tmp_path / "ws"), "import", "acme/lora", "guest", "--json"]
    adapter = json.loads(run([*command, "--base", "acme/tiny"], tmp_path, hub.address).splitlines()[-1])
    assert (adapter["adapter"], adapter["base"], adapter["source"]) == ("guest", "acme/tiny", "imported")
    kept = json.loads((tmp_path / "ws" / "adapters" / "guest" / "adapter_config.json").read_text())
    assert kept["base_model_name_or_path"] == "acme/tiny"
    assert "model.safetensors" not in hub.asked


def test_what_the_hub_does_not_have_or_give_is_told(hub: Hub, tmp_path: Path) -> None:
    missing, locked = open_all([("base", "acme/nothing"), ("adapter", "acme/locked")], tmp_path, hub.address)
    assert str(missing).startswith("UnavailableError: Base model 'acme/nothing' is no folder here, and the hub has no ")
    assert str(missing).endswith("use the packaged base model smollm2-135m or a local folder.")
    assert "only with its owner's leave" in str(locked)


PACKAGED = {
    "base": "use the packaged base model smollm2-135m or a local folder",
    "outline": "use the packaged base model smollm2-135m or a local folder",
    "adapter": "name a local PEFT folder",
    "encoder": "use a packaged encoder: minilm (English) or e5 (Chinese and English)",
    "data": "use a packaged generator such as reasoning_gym:chain_sum, or a local file",
}


@pytest.mark.parametrize("silent", [True, False], ids=["a hub that never answers", "no hub"])
def test_without_a_hub_every_door_names_the_packaged_choice(silent: bool, tmp_path: Path) -> None:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        if silent:
            place.listen(50)  # connections are taken, and nothing is ever said
        answers = open_all(
            [(door, "acme/tiny") for door in PACKAGED], tmp_path, f"http://127.0.0.1:{place.getsockname()[1]}"
        )
    assert len(answers) == len(PACKAGED)
    for answer, words in zip(answers, PACKAGED.values(), strict=True):
        assert str(answer).startswith("UnavailableError: ")
        assert "the hub cannot be reached" in str(answer)
        assert words in str(answer)
        assert "\n" not in str(answer)
