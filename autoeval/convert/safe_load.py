"""Reading ``torch.save`` files that nobody vouches for: nothing in them is imported, called or executed.

Tensors and plain containers are what PyTorch's weights-only unpickler allows. ``argparse.Namespace`` is real, because
the training arguments are one. Classes that Megatron is known to leave in its checkpoints (enums, numpy random states,
signals) become inert records. Every other name is refused, with the name.
"""

from __future__ import annotations

import argparse
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

from autoeval.convert.errors import ConversionError

# Modules (and what lies below them) whose classes Megatron writes; shared/reference/megatron.md, section 4. They only
# ever become inert records, so an enum of a future Megatron needs no change here.
_STUBBED_MODULES = (
    "megatron",
    "numpy",
    "transformer_engine",
    "nvidia_resiliency_ext",
    "modelopt",
)
_STUBBED_NAMES = frozenset(
    {
        "signal.Signals",
        "types.SimpleNamespace",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "_codecs.encode",
        "_io.BytesIO",
        "io.BytesIO",
        "torch._C.Generator",
    }
)


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


def load_restricted(source: Path | bytes, *, name: str | None = None) -> Any:
    """Load a ``torch.save`` file (memory-mapped) or blob onto the CPU.

    Raises ``ConversionError`` naming the file and the class or function that it may not name, or saying that the file
    is torn or of the format that PyTorch wrote before 1.6.
    """
    import torch

    name = name or (str(source) if isinstance(source, Path) else "a stored object")
    try:
        if not zipfile.is_zipfile(source if isinstance(source, Path) else io.BytesIO(source)):
            raise ConversionError(f"{name}: not a whole zip-format torch file (torn, or written by PyTorch before 1.6)")
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(_open(source))
        allowed = [_allowed(qualified, name) for qualified in unsafe]
        with torch.serialization.safe_globals(allowed):
            mapped = isinstance(source, Path)
            return torch.load(_open(source), map_location="cpu", weights_only=True, mmap=mapped)
    except ConversionError:
        raise
    except FileNotFoundError as error:
        raise ConversionError(f"{name}: the file is not there") from error
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{name}: cannot be read safely: {_first_line(error)}") from error
    except (AttributeError, IndexError, AssertionError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise ConversionError(f"{name}: not a valid torch file: {_first_line(error)}") from error


def _open(source: Path | bytes) -> Any:
    return str(source) if isinstance(source, Path) else io.BytesIO(source)


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


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
