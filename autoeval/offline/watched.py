"""A process without network, and what it and its children tried: for the proof that an evaluation needs none.

Two means at once. A network namespace, where the system permits one, has no way out for anything, whatever language it
is written in; the kernel counts what found no route. The guard (``guard/sitecustomize.py``) says who tried what.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GUARD = Path(__file__).resolve().parent / "guard"
NETWORK_LOG = "AUTOEVAL_NETWORK_LOG"


@dataclass(frozen=True)
class Attempt:
    """At Unix ``time`` a process tried to reach ``address``; ``where`` has the innermost frames of it. ``kind`` is connect,
    sendto, sendmsg, name lookup, request, proxy or program."""

    time: float
    pid: int
    kind: str
    address: str
    where: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}: {self.address}" + (f" (at {', called by '.join(self.where[:3])})" if self.where else "")


def guard_environment(environment: Mapping[str, str], log: Path) -> dict[str, str]:
    """``environment`` with the guard on: attempts are refused and appended to ``log``."""
    path = os.pathsep.join(filter(None, [str(GUARD), environment.get("PYTHONPATH", "")]))
    return {**environment, "PYTHONPATH": path, NETWORK_LOG: str(log)}


@functools.cache
def namespace_command() -> tuple[str, ...]:
    """What a command must be prefixed with to run in a network namespace of its own; empty where that is not permitted.

    It was tried: root may always, others where the system lets them make user namespaces.
    """
    if shutil.which("unshare") is None:
        return ()
    ways = [("unshare", "--net", "--")] if os.geteuid() == 0 else []
    for way in (*ways, ("unshare", "--map-root-user", "--net", "--")):
        prefix = (*way, sys.executable, "-m", "autoeval.offline.loopback")
        home = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([home, os.environ.get("PYTHONPATH", "")])}
        try:
            done = subprocess.run([*prefix, "true"], env=environment, capture_output=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return prefix
    return ()


def guarded_processes(log: Path) -> set[int]:
    """The processes in which the guard was at work. A proof of silence needs the worker to be one of them."""
    return {one.pid for one in _written(log) if one.kind == "began"}


def attempts(log: Path) -> list[Attempt]:
    """What the guard has written, in the order of time."""
    return sorted((one for one in _written(log) if one.kind != "began"), key=lambda one: one.time)


def _written(log: Path) -> list[Attempt]:
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    records = [json.loads(line) for line in lines if line.endswith("}")]  # the last one may be cut short by a kill
    return [Attempt(r["time"], r["pid"], r["kind"], r["address"], tuple(r["where"])) for r in records]


def unroutable(pid: int) -> int:
    """How many packets of the network namespace of process ``pid`` had no way out, counted by the kernel: also those of
    programs that the guard does not see. Raises ``OSError`` when the process is gone."""
    net = Path(f"/proc/{pid}/net")
    ipv4 = _table((net / "snmp").read_text(encoding="ascii"))
    ipv6 = dict(line.split() for line in (net / "snmp6").read_text(encoding="ascii").splitlines())
    counts = [ipv4.get(("Ip", "OutNoRoutes"), 0), ipv4.get(("Udp", "NoPorts"), 0)]
    return sum(counts) + sum(int(ipv6.get(name, 0)) for name in ("Ip6OutNoRoutes", "Udp6NoPorts"))


def _table(text: str) -> dict[tuple[str, str], int]:
    """Of /proc/net/snmp: pairs of lines, names and values."""
    lines: Sequence[list[str]] = [line.split() for line in text.splitlines()]
    found: dict[tuple[str, str], int] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        kind = names[0].rstrip(":")
        found |= {(kind, name): int(value) for name, value in zip(names[1:], values[1:], strict=False)}
    return found
