"""A throw-away SLURM cluster on this machine: real daemons, one slurmd per virtual node.

Needs root and Debian's slurm-wlm (built for several slurmd on a host) and munge. Everything lies in
one folder; key, socket and ports are its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.launching import OPEN_MPI, ROOT

TOOLS = ("slurmctld", "slurmd", "sbatch", "scontrol", "munged", "runuser")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/state/%n
TmpFS={folder}/tmp/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,requeue_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=3600
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
PropagateResourceLimits=NONE
"""
PARTITIONS = """
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """What is not there to start a cluster with."""
    return [tool for tool in TOOLS if shutil.which(tool) is None] + ["root"] * (os.getuid() != 0)


REVOKED_S = 3.0
"""Nodes refuse a job in the second in which its last start was revoked, and count whole ones."""


class Slurm:
    """A running cluster of `n_nodes` nodes, n1, n2, ..., of `cpus` each; end it with `close`."""

    def __init__(self, folder: Path, n_nodes: int = 3, cpus: int = 2) -> None:
        self.folder, self.n_nodes = folder, n_nodes
        for name in ("state", "log", "run", "munge", *(f"tmp/n{k + 1}" for k in range(n_nodes))):
            (folder / name).mkdir(parents=True)
        for parent in (folder, *folder.parents):  # munge's own user must come through
            with suppress(PermissionError):
                parent.chmod(parent.stat().st_mode | 0o011)
        self._munge()
        port, host = _free_port(), socket.gethostname().partition(".")[0]
        lines = [CONF.format(host=host, folder=folder, port=port)]
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // n_nodes >> 21
        lines += [
            f"NodeName=n{k} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + k} CPUs={cpus} "
            f"Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 "
            f"RealMemory={memory} State=UNKNOWN\n"
            for k in range(1, n_nodes + 1)
        ]
        (folder / "slurm.conf").write_text("".join(lines) + PARTITIONS)
        self.environment = {
            **os.environ, **OPEN_MPI, "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHONPATH": str(ROOT), "PRTE_MCA_hwloc_default_binding_policy": "none",
        }  # fmt: skip
        self.call("slurmctld", "-c")
        for k in range(1, n_nodes + 1):
            (folder / "state" / f"n{k}").mkdir()
            self.call("slurmd", "-N", f"n{k}")
        self.wait_for(lambda: set(self.call("sinfo", "-h", "-N", "-o", "%T").split()) == {"idle"})

    def _munge(self) -> None:
        folder = self.folder / "munge"
        (folder / "key").write_bytes(os.urandom(128))
        for path, mode in ((folder, 0o711), (folder / "key", 0o400)):
            path.chmod(mode)
            shutil.chown(path, "munge", "munge")
        names = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log",
                 "seed-file": "seed"}  # fmt: skip
        options = [f"--{option}={folder / name}" for option, name in names.items()]
        subprocess.run(
            ["runuser", "-u", "munge", "--", "munged", *options, "--force"], check=True,
            capture_output=True, timeout=30,
        )  # fmt: skip

    def call(self, *words: str, code: int | None = 0, **extra: str) -> str:
        """What a command of SLURM prints; its exit code is checked unless `code` is None."""
        done = subprocess.run(
            words, env={**self.environment, **extra}, capture_output=True, text=True, timeout=60,
            cwd=self.folder,
        )  # fmt: skip
        assert code is None or done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout

    def submit(self, *words: str, **extra: str) -> str:
        """The number of a job that runs `words` in the folder."""
        return self.call("sbatch", "--parsable", *words, **extra).strip()

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        told = self.call("scontrol", "-o", "show", "job", number)
        return dict(word.split("=", 1) for word in told.split() if "=" in word)

    def wait_for(self, condition: Any, limit_s: float = 60) -> None:
        """Wait until a condition holds; fail with SLURM's own log where it does not."""
        end = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > end:
                log = (self.folder / "log" / "slurmctld.log").read_text()[-2000:]
                raise AssertionError(f"waited too long: {self.call('squeue', '-l')}\n{log}")
            time.sleep(0.1)

    def start_again(self, number: str) -> None:
        """Wait until a job was queued again, and begin it at once: SLURM would wait two minutes."""
        self.wait_for(lambda: self.job(number)["JobState"] == "PENDING")
        time.sleep(REVOKED_S)
        self.call("scontrol", "update", f"JobId={number}", "StartTime=now")
        self.wait_for(lambda: self.job(number)["JobState"] != "PENDING")

    def wait_for_end(self, number: str, limit_s: float = 90) -> dict[str, str]:
        """What is known of a job once it is over."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        self.wait_for(lambda: self.job(number)["JobState"] in over, limit_s)
        return self.job(number)

    def lose_node(self, name: str) -> None:
        """Kill a node: its daemon, and every process of a step on it."""
        daemon = int((self.folder / "run" / f"slurmd.{name}.pid").read_text())
        os.kill(daemon, signal.SIGKILL)
        for pid in _with_environment(f"SLURMD_NODENAME={name}"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in _steps_of(name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End jobs and daemons."""
        self.call("scancel", "-u", "root", code=None)
        with suppress(AssertionError):
            self.wait_for(lambda: not self.call("squeue", "-h"), 10)
        pids = [*(self.folder / "run").glob("*.pid"), self.folder / "munge" / "pid"]
        numbers = [int(path.read_text()) for path in pids if path.exists()]
        for kind in (signal.SIGTERM, signal.SIGKILL):
            for number in numbers:
                with suppress(ProcessLookupError):
                    os.kill(number, kind)
            end = time.monotonic() + 5
            while time.monotonic() < end and any(Path(f"/proc/{n}").exists() for n in numbers):
                time.sleep(0.05)
        for pid in _with_environment(f"SLURM_CONF={self.folder / 'slurm.conf'}"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _with_environment(text: str) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with suppress(OSError):
                words = Path("/proc", entry, "environ").read_bytes().split(b"\0")
                if text.encode() in words:
                    found.append(int(entry))
    return found


def _steps_of(name: str) -> list[int]:
    """Step daemons of a node: their own title names it."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
                if words[0].startswith(b"slurmstepd") and name.encode() in b" ".join(words):
                    found.append(int(entry))
    return found
