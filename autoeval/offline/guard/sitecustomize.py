"""Found first on PYTHONPATH, Python runs this before anything else in a process and in all its children: attempts at the
network are written down and refused. ``autoeval.offline.guard_environment`` turns it on.

An audit hook (PEP 578) sees every socket that Python opens, whatever library it is for, and cannot be removed. Only the
standard library is used, and little of it: whatever is imported here is imported before the program.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import types

LOG = os.environ.get("AUTOEVAL_NETWORK_LOG", "")
DISCARD_PORT = 9  # where autoeval.offline.environment lets proxies point: whoever asks there wanted the network
_DOWNLOADERS = {"wget", "curl", "gdown", "aria2c", "rsync", "ssh", "scp", "sftp", "ftp", "gsutil", "gcloud", "aws"}
_DOWNLOADERS |= {"s3cmd", "s5cmd", "hf", "huggingface-cli"}
_GIT = {"clone", "fetch", "pull", "push", "ls-remote"}  # all else of git stays here
_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib would be imported for every process
_busy = threading.local()


def _is_local(host):
    """Of a name or an address: this machine. Its own name counts, since it is looked up in /etc/hosts."""
    if isinstance(host, (bytes, bytearray)):
        host = bytes(host).decode("utf-8", "replace")
    if host is None or not isinstance(host, str):
        return host is None
    name = host.partition("%")[0].lower().rstrip(".")
    own = (socket.gethostname().lower(), "", "localhost", "localhost.localdomain", "::1", "::", "0.0.0.0")
    return name in own or name.startswith(("127.", "::ffff:127."))


def _where():
    """The innermost frames of the attempt that are not the standard library's, innermost first."""
    frames: list[str] = []
    frame: types.FrameType | None = sys._getframe(2)
    library = os.path.dirname(os.__file__)  # noqa: PTH120
    while frame is not None and len(frames) < 6:
        file = frame.f_code.co_filename
        if not file.startswith((_HERE, "<")) and (not file.startswith(library) or "site-packages" in file):
            frames.append(f"{'/'.join(file.split('/')[-3:])}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return frames


def _note(kind, address):
    record = {"time": time.time(), "pid": os.getpid(), "kind": kind, "address": str(address)[:300], "where": _where()}
    descriptor = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(record) + "\n").encode())
    finally:
        os.close(descriptor)


def _program(arguments):
    """The command line, if a downloader is in its beginning (``sh -c`` and ``python`` may stand before it)."""
    whole = arguments if isinstance(arguments, str) else " ".join(map(os.fsdecode, arguments or ()))
    names = [word.rpartition("/")[2] for word in whole.split()[:4]]
    reaches_out = _DOWNLOADERS & set(names) or ("git" in names and _GIT & set(names))
    return whole if reaches_out else None


def _host_of(url):
    """Of an http or ftp address; ``None`` for what needs no network."""
    scheme, found, rest = url.partition("://")
    if not found or scheme == "file":
        return None
    place = rest.partition("/")[0].rpartition("@")[2]
    return place[1:].partition("]")[0] if place.startswith("[") else place.partition(":")[0]


def _attempt(event, arguments):
    """(kind, address, the exception that refuses it or ``None``) of an attempt; ``None`` for everything else."""
    if event == "socket.connect" or event == "socket.sendto" or event == "socket.sendmsg":
        address = arguments[1]
        if (
            not isinstance(address, tuple)
            or len(address) < 2
            or arguments[0].family not in (socket.AF_INET, socket.AF_INET6)
        ):
            return None  # a Unix socket; a message on a connected one
        if not _is_local(address[0]):
            return event[7:], f"{address[0]}:{address[1]}", OSError(101, "Network is unreachable")
        if address[1] == DISCARD_PORT:
            return "proxy", "what, the library did not say: it was led to a proxy that is not there", None
    elif event == "socket.getaddrinfo" or event in ("socket.gethostbyname", "socket.gethostbyaddr"):
        if not _is_local(arguments[0]):
            return "name lookup", arguments[0], socket.gaierror(-3, "Temporary failure in name resolution")
    elif event == "urllib.Request":
        if not _is_local(_host_of(str(arguments[0]))):
            return "request", arguments[0], None  # the connection that follows is refused
    elif event in ("subprocess.Popen", "os.posix_spawn", "os.exec"):
        if (program := _program(arguments[1])) is not None:
            return "program", program, OSError(101, "Network is unreachable")
    elif event == "os.system" and (program := _program(os.fsdecode(arguments[0]))) is not None:
        return "program", program, OSError(101, "Network is unreachable")
    return None


def _hook(event, arguments):
    if not event.startswith(("socket.", "urllib.", "subprocess.", "os.")) or getattr(_busy, "now", False):
        return
    _busy.now = True
    try:
        found = _attempt(event, arguments)
        if found is None:
            return
        _note(found[0], found[1])
    finally:
        _busy.now = False
    if found[2] is not None:
        raise found[2]


def _run_the_next_one():
    """This file hides whatever sitecustomize the machine has."""
    import importlib.machinery
    import importlib.util

    path = [entry for entry in sys.path if os.path.abspath(entry) != _HERE]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", path)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if LOG:
    _note("began", sys.argv[:1] if hasattr(sys, "argv") else "")  # a guard that does not work must not pass for silence
    sys.addaudithook(_hook)
_run_the_next_one()
