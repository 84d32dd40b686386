"""The one model that a worker has loaded. The next checkpoint's weights go into the same module where that is possible."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoeval.tasks.plan import ModelOptions

if TYPE_CHECKING:
    from autoeval.models.in_place import Renewal

logger = logging.getLogger("autoeval.worker")


class LoadedModel:
    """Nothing at first. A model stays until one comes that does not fit its module, or until ``drop``."""

    def __init__(self) -> None:
        self._model: Any = None
        self._options: ModelOptions | None = None
        self._files: str | None = None  # ``deciding_files`` of what was loaded
        self._torn = False  # some of its weights are another checkpoint's

    def load(self, directory: Path, options: ModelOptions) -> Any:
        """The model of ``directory``: its weights in the module that is there, or a module of its own.

        Raises what ``load_model`` raises; then nothing is loaded.
        """
        started = time.perf_counter()
        if self._may_be_renewed(options) and self._renew(directory):
            logger.info("weights put into the loaded model in %.2f s", time.perf_counter() - started)
            return self._model
        self.drop()
        from autoeval.models.in_place import deciding_files
        from autoeval.models.loading import load_model

        files = deciding_files(directory)
        self._model = load_model(
            directory,
            devices=options.devices,
            dtype=options.dtype,
            device=options.device,
            max_seq_len=options.max_seq_len,
            batch_tokens=options.batch_tokens,
        )
        self._options, self._files = options, files
        logger.info("model loaded in %.2f s", time.perf_counter() - started)
        return self._model

    def receiver(self, options: ModelOptions) -> Incoming | None:
        """What takes a conversion's tensors on their way; ``None`` when there is no module for them."""
        # Modules in other processes take their weights from the files.
        here = self._may_be_renewed(options) and not hasattr(self._model, "renew")
        return Incoming(self) if here else None

    def drop(self) -> None:
        """Free the memory."""
        if self._model is not None:
            self._model.unload()
        self._model, self._options, self._torn = None, None, False

    def _may_be_renewed(self, options: ModelOptions) -> bool:
        alive = self._model is not None and getattr(self._model, "alive", True)
        return alive and self._options == options and not self._torn

    def renewal(self) -> Renewal:
        """The means to give the module other weights."""
        from autoeval.models.in_place import Renewal

        return Renewal(self._model, self._files)

    def _renew(self, directory: Path) -> bool:
        from autoeval.models.in_place import shapes_in

        if hasattr(self._model, "renew"):
            self._torn = True
            renewed = bool(self._model.renew(directory))
            self._torn = False
            return renewed
        renewal = self.renewal()
        if not renewal.fits(directory, shapes_in(directory)):
            return False
        self._torn = True
        renewal.read(directory)
        renewal.done(directory)
        self._torn = False
        return True


class Incoming:
    """A ``Receiver`` of a conversion that runs in another thread. ``settled`` is set when all tensors are in place, and
    by whoever knows that they never will be."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._renewal: Renewal | None = None
        self._name, self._at = "", 0
        self.complete = False
        self.settled = threading.Event()

    def begin(self, directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        renewal = self._loaded.renewal()
        if not renewal.fits(directory, shapes):
            return False
        self._loaded._torn = True
        self._renewal = renewal
        return True

    def take(self, name: str, dtype: str, content: memoryview) -> None:
        import torch

        assert self._renewal is not None
        values = torch.frombuffer(content, dtype=getattr(torch, dtype))
        self._name, self._at = name, self._at if name == self._name else 0
        self._renewal.put(name, self._at, values)
        self._at += values.numel()

    def end(self) -> None:
        self.complete = True
        self.settled.set()

    def model(self, directory: Path) -> Any:
        """The model, once ``complete``; ``directory`` is where its files will be."""
        assert self._renewal is not None
        self._renewal.done(directory)
        self._loaded._torn = False
        return self._loaded._model
