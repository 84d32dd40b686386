"""What a machine that runs our work sees, told from there: run as a job by the configured runner.

    python -m autoeval.doctor.probe REQUEST.json NUMBER

REQUEST.json has ``answer`` (where the answer goes), ``work_dir``, ``checkpoint_path``, ``newest`` (a file of the newest
checkpoint, or null), ``repository`` and ``digest`` (its sources). Only the standard library is needed to answer.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[2]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """JSON values only. ``None`` in ``work_dir``, ``checkpoints`` and ``newest`` means that all is well there."""
    torch = _torch()  # first: its import takes a while, and the time is compared
    return {
        "host": socket.gethostname(),
        "user": _user(),
        "python": sys.executable,
        "version": platform.python_version(),
        "time": time.time(),
        "work_dir": _cannot_write(Path(request["work_dir"])),
        "checkpoints": _cannot_list(Path(request["checkpoint_path"])),
        "newest": None if request["newest"] is None else _cannot_read(Path(request["newest"])),
        "repository": str(HOME),
        "digest": digest(HOME),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        **torch,
    }


def digest(repository: Path) -> str:
    """Of the names and contents of the sources: another version of them elsewhere gives other scores."""
    found = hashlib.sha256()
    for folder in ("autoeval", "recorder"):
        for path in sorted((repository / folder).rglob("*.py")):
            found.update(f"{path.relative_to(repository)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        return f"uid {os.getuid()}"


def _cannot_write(directory: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=directory) as stream:
            stream.write(b"written by a probe")
    except OSError as error:
        return f"{directory}: {error.strerror}"
    return None


def _cannot_list(directory: Path) -> str | None:
    try:
        next(directory.iterdir(), None)
    except OSError as error:
        return f"{directory}: {error.strerror}"
    return None


def _cannot_read(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            stream.read(1)
    except OSError as error:
        return f"{file}: {error.strerror}"
    return None


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # not only ImportError: a library that cannot be loaded
        return {"torch": None, "torch_error": f"{type(error).__name__}: {error}", "cuda": []}
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(place) for place in range(count)]
    return {"torch": torch.__version__, "torch_error": None, "cuda": names}


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    path = Path(request["answer"])
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(answer(request)), encoding="utf-8")
    temporary.replace(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
