"""Running code that a model wrote, where it can do no harm.

The program gets namespaces of its own (Linux, util-linux's ``unshare``): no network, no other processes, a file system
of its own in which the Python installation and the system's libraries are read-only, one private directory ``/tmp`` in
memory is writable and nothing else is there. It is nobody, has no capabilities and can get none. Memory, CPU time,
processes, file sizes and wall-clock time are limited. Where any of this cannot be had, nothing is run.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("unshare", "mount", "umount", "pivot_root", "prlimit", "setpriv", "sh")
_NOBODY = 65534
_SHOWN = 2000  # characters of what the program wrote, for the record

# The new root is made and entered; the old one is gone before the program starts. Bind mounts are read-only before
# anything of the program's runs.
_SETUP = """set -e
root=$1; python=$2; shift 2
mount --make-rprivate /
mount -t tmpfs -o size=1m,mode=755,nosuid,nodev none "$root"
while [ "$1" != -- ]; do
  mkdir -p "$root$1"
  mount --bind "$1" "$root$1"
  mount -o remount,bind,ro,nosuid,nodev "$root$1"
  shift
done
shift
mkdir "$root/tmp" "$root/proc" "$root/old" "$root/dev"
mount -t tmpfs -o size=$SANDBOX_DISK,mode=1777,nosuid,nodev,noexec none "$root/tmp"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
for device in null urandom; do
  : > "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
cd "$root"
pivot_root . old
umount -l /old
rmdir /old
mount -o remount,bind,ro,nosuid,nodev /
cd /tmp
exec "$@" "$python" -I -S -B -c "$SANDBOX_RUNNER"
"""

# The token on standard error says that the program reached its end: leaving early is not passing.
_RUNNER = """import sys
token, program = sys.stdin.readline().strip(), sys.stdin.read()
sys.stdin.close()
exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
sys.stderr.write("\\n" + token)
"""


class NoIsolation(RuntimeError):
    """This machine cannot isolate a program; the message says what is missing."""


@dataclass(frozen=True)
class Limits:
    """``seconds`` of wall-clock time, ``cpu_seconds`` of each process, bytes of address space and of files."""

    seconds: float = 15.0
    cpu_seconds: int = 10
    memory: int = 1 << 30
    processes: int = 8
    disk: int = 16 << 20


@dataclass(frozen=True)
class Ran:
    """``finished``: the program came to its end without an error. ``output``: the end of what it wrote to stderr."""

    finished: bool
    timed_out: bool
    output: str


def run_isolated(program: str, limits: Limits | None = None) -> Ran:
    """Run Python source. Raises ``NoIsolation`` when that cannot be done safely here."""
    problem = isolation_problem()
    if problem:
        raise NoIsolation(f"code that a model wrote is not run on this machine: {problem}")
    return _run(program, limits or Limits())


@functools.cache
def isolation_problem() -> str | None:
    """Why programs cannot be isolated here; ``None`` when they can (it was tried)."""
    if not sys.platform.startswith("linux"):
        return "Linux namespaces are needed"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} (util-linux) not found"
    tried = _run(_PROBE, Limits())
    return None if tried.finished else f"namespaces could not be set up: {tried.output.strip() or 'no answer'}"


# What must hold inside, asked for by a program as a model might write it.
_PROBE = """import os, socket
assert os.listdir("/tmp") == [] and not os.path.exists("/old") and len(os.listdir("/proc/self/task")) == 1
assert sum(name.isdigit() for name in os.listdir("/proc")) == 1, "other processes are visible"
assert [name for _, name in socket.if_nameindex()] in ([], ["lo"]), "there is a network"
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines() if ":" in line)
assert int(status["CapEff"], 16) == 0 and status["NoNewPrivs"].strip() == "1", "there are capabilities"
try:
    open("/usr/probe", "w")
except OSError:
    pass
else:
    raise AssertionError("the system is writable")
"""


def _run(program: str, limits: Limits) -> Ran:
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="sandbox-") as root, tempfile.TemporaryFile() as written:
        Path(root).chmod(0o755)
        process = subprocess.Popen(
            _command(root, limits),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=written,
            env={"PATH": os.defpath + ":/usr/sbin:/sbin", "SANDBOX_RUNNER": _RUNNER, "SANDBOX_DISK": str(limits.disk)},
            start_new_session=True,
        )
        timed_out = False
        try:
            process.communicate(f"{token}\n{program}".encode(), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # unshare takes the whole namespace with it
            process.wait()
        written.seek(0)
        output = written.read().decode(errors="replace")
    finished = process.returncode == 0 and not timed_out and output.endswith(token)
    return Ran(finished, timed_out, output.removesuffix(token)[-_SHOWN:])


def _command(root: str, limits: Limits) -> list[str]:
    python = os.path.realpath(sys.executable)
    wanted = ["/usr", "/lib", "/lib64", "/lib32", sys.base_prefix, str(Path(python).parent.parent)]
    shown: list[str] = []
    for path in dict.fromkeys(wanted):
        if Path(path).is_dir() and not any(Path(path).is_relative_to(known) for known in shown):
            shown.append(path)
    user = ["--user", "--map-root-user"] if os.geteuid() else []
    # As root the user namespace is left out, so that the program can be somebody else: limits do not hold for root.
    identity = [] if user else [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    inside = [
        "prlimit",
        f"--as={limits.memory}",
        f"--cpu={limits.cpu_seconds}",
        f"--nproc={limits.processes}",
        f"--fsize={limits.disk}",
        "--nofile=64",
        "--core=0",
        "setpriv",
        *identity,
        "--no-new-privs",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ]
    spaces = ["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    return ["unshare", *user, *spaces, "sh", "-c", _SETUP, "sh", root, python, *shown, "--", *inside]
