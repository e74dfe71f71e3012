"""Every page opens without an error, on a full workspace and on an empty one, and none of them imports torch for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metamoe_backend.workspace import Workspace

PROJECT = Path(__file__).resolve().parent.parent
PAGES = sorted(path.name for path in (PROJECT / "pages").glob("p[0-9][0-9]_*.py"))
OPEN_ALL = """
import json, sys
from streamlit.testing.v1 import AppTest
found = {}
for page in sys.argv[1:]:
    app = AppTest.from_file(f"pages/{page}", default_timeout=600).run()
    found[page] = [f"{e.message}" for e in app.exception] + [e.value for e in app.error]
heavy = [name for name in ("torch", "transformers", "peft", "umap", "hdbscan", "datasets") if name in sys.modules]
print(json.dumps({"found": found, "heavy": heavy}))
"""


@pytest.fixture(params=["full", "empty"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "full":
        return request.getfixturevalue("synthetic").root
    return Workspace(tmp_path / "empty").create().root


def test_all_pages_open(folder: Path) -> None:
    assert len(PAGES) == 13
    environment = {**os.environ, "METAMOE_WORKSPACE": str(folder), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", OPEN_ALL, *PAGES],
        env=environment,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert {page: problems for page, problems in result["found"].items() if problems} == {}
    assert result["heavy"] == []
