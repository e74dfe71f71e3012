"""Verbs about the workspace as a whole: rebuild, repair, doctor, demo, ui."""

import argparse
import os
import sys
from pathlib import Path

from metamoe_backend.errors import ConfigError, MetaMoEError
from metamoe_backend.store.connection import Store
from metamoe_backend.verbs.common import Result, require_workspace, say
from metamoe_backend.workspace import find_workspace


def run_rebuild(options: argparse.Namespace) -> Result:
    from metamoe_backend.store.rebuild import rebuild

    counts = rebuild(require_workspace(options))
    say(f"Rebuilt: {sum(counts.values())} rows in {len(counts)} tables.")
    return {"rows": counts}


def run_repair(options: argparse.Namespace) -> Result:
    from metamoe_backend.store.repair import repair

    result: Result = repair(require_workspace(options))
    say("Repaired {repaired}; {bytes_cut} bytes cut; copy kept at {kept_copy!r}.".format(**result))
    return result


def run_doctor(options: argparse.Namespace) -> Result:
    from metamoe_backend.doctor import examine, summarise

    findings = examine(find_workspace(options.workspace))
    if not options.json:
        for finding in findings:
            mark = "ok " if finding.ok else "BAD"
            print(f"{mark} {finding.what}: {finding.found}" + (f" -> {finding.remedy}" if finding.remedy else ""))
    return summarise(findings)


def run_demo(options: argparse.Namespace) -> Result:
    from metamoe_backend.demo import DEMO_FOLDER, open_demo
    from metamoe_backend.demo_recording import record_demo

    if options.record:
        return record_demo(Path(options.out) if options.out else DEMO_FOLDER, say)
    workspace = find_workspace(options.workspace) if options.workspace else None
    opened = open_demo(workspace)
    say(f"The demo lies in {opened.root}; open it with `python -m metamoe_backend --workspace {opened.root} ui`.")
    return {"workspace": str(opened.root)}


def run_ui(options: argparse.Namespace) -> Result:
    """Open the dashboard; without any workspace yet, on a copy of the recorded demo."""
    import subprocess

    from metamoe_backend.demo import open_demo
    from metamoe_backend.workspace import DEFAULT_WORKSPACE

    if options.address not in ("127.0.0.1", "localhost", "::1") and not Path(".streamlit/secrets.toml").is_file():
        raise ConfigError(
            f"{options.address} can be reached by others and no sign-in is set up; leave --address out, or configure "
            "[auth] in .streamlit/secrets.toml (README, 'For a group')."
        )
    workspace = find_workspace(options.workspace)
    if workspace.root == DEFAULT_WORKSPACE and not workspace.database.exists():
        workspace = open_demo(None)
    with Store.open(workspace, "the dashboard") as store:
        say(f"Opening workspace {store.workspace.name} at http://{options.address}:{options.port}")
    project = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "pages", "--server.port", str(options.port), "--server.address", options.address]
    if options.address not in ("127.0.0.1", "localhost"):
        command += ["--server.allowedHosts", "*"]  # the sign-in guards it; names of this host are not known here
    environment = {**os.environ, "METAMOE_WORKSPACE": str(workspace.root.resolve())}
    finished = subprocess.run(command, env=environment, cwd=project, check=False)
    if finished.returncode not in (0, -2, 130):
        raise MetaMoEError(f"The dashboard ended with status {finished.returncode}; its messages stand above.")
    return {"workspace": str(workspace.root)}
