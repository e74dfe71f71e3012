"""Hub data sets through the real `datasets`, against a small hub that this test serves; and what is said without one.

Each case runs in a process of its own: the hub's address is read once, when its library is imported.
"""

import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest

COMMIT = "a" * 40
FOLDERS = {"acme/toy": ["data/test-00000-of-00001.parquet"], "acme/bare": ["notes.txt"]}
SCRIPT = """
import json, sys
from metamoe_backend.errors import UserError
from metamoe_backend.ingest.hub import read_hub
for arguments in json.loads(sys.argv[1]):
    try:
        print(json.dumps([[row.line, row.values] for row in read_hub(*arguments)]))
    except UserError as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""


def _parquet() -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame([{"question": f"Who is {n}?", "answer": f"person {n}"} for n in range(3)]).to_parquet(buffer)
    return buffer.getvalue()


class Hub(BaseHTTPRequestHandler):
    """The few addresses `datasets` asks for: what a repository holds, its folders, and its files."""

    protocol_version = "HTTP/1.1"
    data = _parquet()

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        repo = next((name for name in FOLDERS if f"/{name}" in path), None)
        if repo is None:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            below = path.split("/tree/")[1].partition("/")[2]
            files = [{"type": "file", "path": name, "size": len(self.data), "oid": "b" * 40} for name in FOLDERS[repo]]
            folder = [{"type": "directory", "path": "data", "size": 0, "oid": "c" * 40}]
            self._answer(200, json.dumps(files if below or repo == "acme/bare" else folder).encode())
        elif "/resolve/" not in path:
            siblings = [{"rfilename": name} for name in FOLDERS[repo]]
            self._answer(200, json.dumps({"id": repo, "sha": COMMIT, "tags": [], "siblings": siblings}).encode())
        elif path.endswith(".parquet"):
            first, _, last = (
                (self.headers.get("Range") or f"bytes=0-{len(self.data)}").removeprefix("bytes=").partition("-")
            )
            part = self.data[int(first) : int(last) + 1]
            span = {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(self.data)}"}
            self._answer(206, part, span | {"X-Repo-Commit": COMMIT, "ETag": '"x"', "Accept-Ranges": "bytes"})
        else:
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def read(folder: Path, cases: list[list[str | None]], **environment: str) -> list[object]:
    proxies = (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "hf_hub_offline",
        "hf_datasets_offline",
        "transformers_offline",
    )
    inherited = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(cases)],
        env=inherited | {"HF_HOME": str(folder), **environment},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hub_data_set_is_read_row_by_row_and_mistakes_get_a_sentence(hub: str, tmp_path: Path) -> None:
    rows, split, config, missing, bare, path = read(
        tmp_path,
        [
            ["acme/toy", None, "test"],
            ["acme/toy", None, "train"],
            ["acme/toy", "nope", "test"],
            ["acme/missing", None, "test"],
            ["acme/bare", None, "test"],
            ["../../x", None, "test"],
        ],
        HF_ENDPOINT=hub,
    )
    assert rows == [[n + 1, {"question": f"Who is {n}?", "answer": f"person {n}"}] for n in range(3)]
    for answer, kind, words in (
        (split, "InputError", "Available splits: ['test']"),
        (config, "InputError", "Available: ['default']"),
        (missing, "NotFoundError", "no data set 'acme/missing'"),
        (bare, "InputError", "acme/bare cannot be read"),
        (path, "InputError", "no hub data set; write hub:OWNER/NAME"),
    ):
        assert str(answer).startswith(f"{kind}: ")
        assert words in str(answer)
        assert "\n" not in str(answer)


def test_without_a_hub_the_packaged_choice_is_named(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    (answer,) = read(tmp_path, [["acme/toy", None, "test"]], HF_ENDPOINT=address)
    assert str(answer).startswith("UnavailableError: hub:acme/toy cannot be read because the hub cannot be reached")
    assert "reasoning_gym:chain_sum, or a local file" in str(answer)


def test_offline_mode_asks_no_hub(hub: str, tmp_path: Path) -> None:
    (answer,) = read(tmp_path, [["acme/toy", None, "test"]], HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert str(answer).startswith("UnavailableError: ")
    assert "reasoning_gym:chain_sum" in str(answer)
