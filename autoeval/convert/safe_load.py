"""Reading ``torch.save`` files that nobody vouches for: nothing in them is imported, called or executed.

Tensors and plain containers are what PyTorch's weights-only unpickler allows. ``argparse.Namespace`` is real, because
the training arguments are one. Classes that Megatron is known to leave in its checkpoints (enums, numpy random states,
signals) become inert records. Every other name is refused, with the name. The tensors' own bytes are not read here.
"""

from __future__ import annotations

import argparse
import io
import pickle
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from autoeval.convert.errors import ConversionError

# Modules (and what lies below them) whose classes Megatron writes; shared/reference/megatron.md, section 4. They only
# ever become inert records, so an enum of a future Megatron needs no change here.
_STUBBED_MODULES = (
    "megatron",
    "torch",  # what PyTorch itself does not allow
    "numpy",
    "signal",  # Python up to 3.10 pickles the signal SIGTERM as the name of a thing in this module
    "transformer_engine",
    "nvidia_resiliency_ext",
    "modelopt",
)
_STUBBED_NAMES = frozenset(
    {
        "builtins.getattr",  # with which Python 3.11.0 to 3.11.3 pickles the members of an enum
        "__builtin__.getattr",
        "types.SimpleNamespace",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib._local.PosixPath",  # Python 3.13
        "_codecs.encode",
        "_io.BytesIO",
        "io.BytesIO",
        "torch._C.Generator",
    }
)
_MAX_PICKLE_BYTES = 512 * 2**20  # data.pkl has names and arguments, no tensors


class Inert:
    """Stands for an instance of a class that is not imported: keeps what the file gave it, does nothing."""

    qualified_name = ""

    def __new__(cls, *arguments: Any, **_keywords: Any) -> Inert:
        made = object.__new__(cls)
        made.arguments = arguments
        made.state = None
        return made

    def __init__(self, *_arguments: Any, **_keywords: Any) -> None:
        self.arguments: tuple[Any, ...]
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<{self.qualified_name}{self.arguments!r}>"


def inside(directory: Path, file: str) -> Path:
    """``directory / file`` when that is a regular file inside ``directory``; a link out of it is refused, unread."""
    path = directory / file
    parts = [path, *path.parents][: len(Path(file).parts)]
    try:
        if any(part.is_symlink() for part in parts) and not path.resolve().is_relative_to(directory.resolve()):
            raise ConversionError(f"{path}: refused, because it leads out of the checkpoint, to {path.resolve()}")
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConversionError(f"{path}: not a regular file")
    except ConversionError:
        raise
    except FileNotFoundError as error:
        raise ConversionError(f"{path}: the file is not there") from error
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a name that no file can have
        raise ConversionError(f"{path}: cannot be read: {error}") from error
    return path


def load_restricted(file: Path, *, offset: int = 0, length: int | None = None, name: str | None = None) -> Any:
    """Objects of a ``torch.save`` file, or of the blob of ``length`` bytes at byte ``offset`` of ``file``.

    Tensors are on the device ``meta``: ``stored.Stored.of`` knows where their bytes are. Raises ``ConversionError``
    naming the file (or ``name``) and the class or function that it may not name, or saying that it is torn or of the
    format that PyTorch wrote before 1.6.
    """
    import torch

    name = name or str(file)
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):  # pytorch/pytorch#170619
        raise ConversionError(
            f"PyTorch {torch.__version__} does not tell where a file's tensors are: 2.11 or later does"
        )
    try:
        with file.open("rb") as stream:
            blob: Any = stream if length is None else io.BufferedReader(_Section(stream, offset, length), 4096)
            _check_zip(blob, name)
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(_rewound(blob))
            with torch.serialization.safe_globals([_allowed(qualified, name) for qualified in unsafe]):
                return torch.load(_rewound(blob), map_location="meta", weights_only=True)
    except ConversionError:
        raise
    except FileNotFoundError as error:
        raise ConversionError(f"{name}: the file is not there") from error
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{name}: cannot be read safely: {_first_line(error)}") from error
    except (AttributeError, IndexError, AssertionError, MemoryError, OverflowError) as error:
        raise ConversionError(f"{name}: not a valid torch file: {_first_line(error)}") from error


class _Section(io.RawIOBase):
    """Part of a file as a file of its own."""

    def __init__(self, stream: BinaryIO, offset: int, length: int):
        self._stream, self._offset, self._length, self._position = stream, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._length)[whence]
        if self._position < 0:
            raise OSError("negative seek position")
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._length - self._position))
        self._stream.seek(self._offset + self._position)
        content = self._stream.read(count)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _check_zip(blob: Any, name: str) -> None:
    try:
        archive = zipfile.ZipFile(_rewound(blob))
    except zipfile.BadZipFile as error:
        raise ConversionError(
            f"{name}: not a whole zip-format torch file (torn, or written by PyTorch before 1.6)"
        ) from error
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ConversionError(f"{name}: {entry.filename} is compressed, which torch.save never does")
        if entry.filename.endswith("data.pkl") and entry.file_size > _MAX_PICKLE_BYTES:
            raise ConversionError(f"{name}: its data.pkl has {entry.file_size} bytes, that is no checkpoint's")
        if entry.filename.endswith("/byteorder") and archive.read(entry) != b"little":
            raise ConversionError(f"{name}: written on a big-endian machine, which is not supported")


def _rewound(blob: Any) -> Any:
    blob.seek(0)
    return blob


def _allowed(qualified: str, name: str) -> Any:
    if qualified == "argparse.Namespace":
        return (argparse.Namespace, qualified)
    module = qualified.partition(".")[0]
    if module in _STUBBED_MODULES or qualified in _STUBBED_NAMES:
        return (type("Inert", (Inert,), {"qualified_name": qualified}), qualified)
    raise ConversionError(
        f"{name}: refused, because it names {qualified}: a checkpoint holds tensors, plain containers and Megatron's "
        "arguments. Nothing of it was run."
    )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
