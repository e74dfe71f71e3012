"""The one entry point of a job, whoever starts it: `python -m metamoe_backend.jobs.worker RUN_DIR [--device DEVICE]`.

Loads what was asked for, computes, hands over. Exit status: 0 ended as asked (finished, stopped, cancelled), 2 a
person's mistake, 1 a bug; 3 when another worker holds the run.
"""

import argparse
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from metamoe_backend.errors import MetaMoEError, StopRequested
from metamoe_backend.jobs.context import RunContext
from metamoe_backend.jobs.durable import try_lock
from metamoe_backend.jobs.run_folder import RunFolder
from metamoe_backend.pipeline import STAGES
from metamoe_backend.rows import RunState
from metamoe_backend.stage import Stage


def run(run_dir: Path, stages: Mapping[str, Stage] = STAGES, device: str | None = None) -> int:
    """Work on one run until its end and return the exit status."""
    folder = RunFolder(run_dir)
    lock = try_lock(folder.worker_lock)
    if lock is None:
        print(f"Another worker is at run {folder.run_id}; this one leaves it alone.", file=sys.stderr)
        return 3
    with lock:
        context = RunContext(folder)
        spec = folder.read_spec()
        context.start(device)
        # SIGTERM (a scheduler's or a person's) means: save what there is, then stop.
        signal.signal(signal.SIGTERM, lambda *_: folder.write_request(save=True))
        context.log(f"{spec.stage} {spec.name}: started by {spec.by}")
        try:
            stage = stages[spec.stage]
            config = folder.parse_config(stage.config)
            if device is not None and hasattr(config, "device"):
                config = config.model_copy(update={"device": device})
            stage.compute(folder.read_inputs(), config, context)
        except StopRequested as stop:
            context.stop_asked = stop
        except MetaMoEError as error:
            context.log(str(error))
            context.fail(error)
            return 2
        except BaseException as error:
            context.log(traceback.format_exc())
            context.fail(f"{type(error).__name__}: {error}")
            raise
        state = _end_state(context.stop_asked)
        context.log(f"{spec.stage} {spec.name}: {state}")
        context.finish(state)
        return 0


def _end_state(stop: StopRequested | None) -> RunState:
    if stop is None:
        return "finished"
    return "stopped" if stop.save else "cancelled"


def main() -> int:
    """Parse the command line and work on the run it names."""
    parser = argparse.ArgumentParser(description="Work on one run.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--device")
    options = parser.parse_args()
    return run(options.run_dir, device=options.device)


if __name__ == "__main__":
    sys.exit(main())
