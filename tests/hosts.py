"""Virtual hosts on this machine: network namespaces on a virtual LAN, TCP between them.

Needs root and iproute2. A host has a name, an address and a file system of its own for the rest of
the system only: files are shared, as on a cluster's network disk, and so is /dev/shm.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.launching import OPEN_MPI, Job

AGENT = """#!/bin/bash
# What mpirun starts daemons with, [-options] HOST COMMAND...; like ssh, it passes no environment.
while [[ ${1#-} != "$1" ]]; do shift; done
host=$1
shift
exec env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME="$HOME" USER=root SHELL=/bin/bash \\
    unshare --uts ip netns exec "$host" bash -c 'hostname "$0"; exec bash -c "$1"' "$host" "$*"
"""


def missing() -> list[str]:
    """What is not there to make hosts with."""
    lacks = [tool for tool in ("ip", "unshare") if shutil.which(tool) is None]
    if os.getuid() != 0:
        return [*lacks, "root"]
    if not lacks and _ip("netns", "add", f"probe{os.getpid()}", check=False):
        return ["network namespaces"]
    _ip("netns", "del", f"probe{os.getpid()}", check=False)
    return lacks


def _ip(*words: str, check: bool = True) -> int:
    return subprocess.run(["ip", *words], check=check, capture_output=True, timeout=30).returncode


class Hosts:
    """`n` hosts with `slots` ranks each; end them with `close`.

    Attributes: `names`, of the hosts.
    """

    def __init__(self, folder: Path, n: int = 3, slots: int = 2) -> None:
        self.folder, self.slots = folder, slots
        self._prefix = f"h{os.getpid() % 10000}x"
        self.names = [f"{self._prefix}{k}" for k in range(1, n + 1)]
        self._switch = f"{self._prefix}s"
        folder.mkdir(exist_ok=True)
        self._agent = folder / "agent"
        self._agent.write_text(AGENT)
        self._agent.chmod(0o755)
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        known = "".join(f"10.99.0.{k} {name}\n" for k, name in enumerate(self.names, 1))
        for k, name in enumerate(self.names, 1):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", self._switch, "link", "add", f"p{k}", "type", "veth", "peer", "name", "eth0",
                "netns", name)  # fmt: skip
            _ip("-n", self._switch, "link", "set", f"p{k}", "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"10.99.0.{k}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            etc = Path("/etc/netns", name)
            etc.mkdir(parents=True)
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n{known}")

    def link(self, name: str, up: bool) -> None:
        """Take a host off the LAN, or put it back."""
        port = f"p{self.names.index(name) + 1}"
        _ip("-n", self._switch, "link", "set", port, "up" if up else "down")

    def clear(self) -> None:
        """End what runs on the hosts."""
        for name in self.names:
            told = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for pid in told.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), 9)

    def start(
        self, n_ranks: int, *words: str, options: tuple[str, ...] = (), map_by: str = "slot",
        **extra: str,
    ) -> Job:  # fmt: skip
        """Start `python words` on `n_ranks` ranks by Open MPI's mpirun, from the first host."""
        first = self.names[0]
        hosts = ",".join(f"{name}:{self.slots}" for name in self.names)
        passed = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), **OPEN_MPI, **extra}
        exported = [word for name in ("PATH", *passed) for word in ("-x", name)]
        command = [
            "unshare", "--uts", "ip", "netns", "exec", first, "bash", "-c",
            f'hostname {first}; exec "$@"', "_", str(Path(sys.prefix) / "bin" / "mpirun"),
            "--prtemca", "plm_ssh_agent", str(self._agent), "--prtemca", "plm_ssh_no_tree_spawn",
            "1", "--prtemca", "prte_if_include", "eth0", "--host", hosts,
            "--mca", "btl_tcp_if_include", "eth0", "--map-by", map_by, *options, *exported,
            "-n", str(n_ranks), sys.executable, *words,
        ]  # fmt: skip
        return Job(command, self.folder, **extra)

    def close(self) -> None:
        """Remove hosts, and what runs on them."""
        self.clear()
        for name in (*self.names, self._switch):
            _ip("netns", "del", name, check=False)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)
        with suppress(OSError):
            Path("/etc/netns").rmdir()
