"""A real Slurm cluster of a node with two fake GPUs and a bare one: munged, slurmctld and slurmds in a folder of their own.

Needs Debian's slurmctld, slurmd and munge (`make test-slurm` installs them); no container, no systemd.
"""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fake_jobs import wait_for

_CONFIG = """\
ClusterName=metamoe
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 Port={node_ports[0]} CPUs=4 Gres=gpu:2 Features=fast State=UNKNOWN
NodeName={other} NodeAddr=127.0.0.1 Port={node_ports[1]} CPUs=4 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=60 MaxTime=60 State=UP
PartitionName=high Nodes={host} PriorityTier=10 MaxTime=60 State=UP
PartitionName=both Nodes={host},{other} PriorityTier=1 MaxTime=60 State=UP
"""


class Cluster:
    """The daemons, and what a test asks them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Write the configuration, start everything, and wait until the nodes take jobs."""
        host = socket.gethostname().partition(".")[0]
        nodes = (host, f"{host}-2")
        controller, *ports = _free_ports(3)
        for name in ("state", *(f"spool-{node}" for node in nodes)):
            (self.folder / name).mkdir()
        names = {"host": host, "other": nodes[1], "folder": self.folder, "user": getpass.getuser()}
        (self.folder / "slurm.conf").write_text(_CONFIG.format(**names, controller_port=controller, node_ports=ports))
        (self.folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/tty[1-2]\n")
        (self.folder / "munge.key").write_bytes(secrets.token_bytes(1024))
        (self.folder / "munge.key").chmod(0o400)
        self._start_daemon(
            "munged", "--foreground", "--force", *(f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")),
            f"--socket={self.folder}/munge.socket",
        )  # fmt: skip
        wait_for(lambda: (self.folder / "munge.socket").exists())
        self.start_controller()
        for node in nodes:
            self._start_daemon("slurmd", "-D", "-N", node)
        wait_for(lambda: self.ask("sinfo", "--noheader", "--format=%T", "--partition=both") == "idle")

    def start_controller(self) -> None:
        self._start_daemon("slurmctld", "-D")
        wait_for(lambda: "UP" in self.ask("scontrol", "ping"))

    def wait_until_saved(self, job: str | None) -> None:
        """Until the controller has written down its jobs as they stand: it does so seconds after each change."""
        changed_at = time.time()
        self.ask("scontrol", "update", f"JobId={job}", "Comment=saved")
        wait_for(lambda: (self.folder / "state" / "job_state").stat().st_mtime > changed_at)

    def kill_controller(self) -> None:
        """As a crash would: nothing is saved on the way."""
        self.daemons["slurmctld"].kill()
        self.daemons["slurmctld"].wait()

    def ask(self, *command: str) -> str:
        """What one of Slurm's programs prints; empty when it fails."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout.strip()

    def word(self, job: str | None) -> str:
        """Slurm's word for a job."""
        return self.ask("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")

    def clear(self) -> None:
        """Every job is over, whatever it was doing."""
        if self.daemons["slurmctld"].poll() is not None:
            self.start_controller()
        self.ask("scancel", f"--user={getpass.getuser()}")
        wait_for(lambda: not self.ask("squeue", "--noheader"))

    def stop(self) -> None:
        """End all daemons, and what the node still runs."""
        for process in reversed(self.daemons.values()):
            if process.poll() is None:
                process.terminate()
                process.wait()

    def _start_daemon(self, name: str, *arguments: str) -> None:
        program = shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
        assert program is not None, f"{name} is not installed; run `make test-slurm` as root, or install it"
        title = arguments[-1] if name == "slurmd" else name
        with (self.folder / f"{title}.out").open("ab") as out:
            self.daemons[title] = subprocess.Popen([program, *arguments], env=self.environment, stdout=out, stderr=out)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def run_cluster() -> Iterator[Cluster]:
    """A cluster, and nothing left of it afterwards."""
    # Not pytest's folder: its long path does not fit a socket's name.
    with tempfile.TemporaryDirectory(prefix="metamoe-slurm-") as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
            cluster.clear()
        finally:
            cluster.stop()
