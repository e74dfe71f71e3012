"""Verbs that hand out what was made: publish."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from metamoe_backend.verbs.common import Result, open_store, say

if TYPE_CHECKING:
    from metamoe_backend.sharing import Form


def run_publish(options: argparse.Namespace) -> Result:
    from metamoe_backend.sharing import publish_system
    from metamoe_backend.store.experts import fetch_systems

    with open_store(options) as store:
        system = fetch_systems(store, [options.system]).iloc[0]
        root = store.workspace.root
    out = Path(options.out).expanduser()
    form: Form = options.form or ("routed" if system["kind"] == "moe" else "adapter")
    publish_system(system, root, out, form)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    say(f"Published {options.system} as {form} in {out} ({size / 1e6:.1f} MB).")
    return {"folder": str(out), "form": form, "bytes": size}
