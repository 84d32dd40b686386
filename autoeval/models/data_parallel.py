"""One model on several devices, whole on each: a process a device, and every call's requests split among them.

    model = DataParallelModel("outputs/gpt2/iter_0002000/hf", devices=["cuda:0", "cuda:1"])

It answers as ``HuggingFaceModel`` does. The parts are subtrees of the trie (``splitting.py``), so next to nothing is
computed twice. The processes are this one's children and end with it, whatever ends it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

from autoeval.models.requests import (
    Cost,
    GenerationRequest,
    GenerationResult,
    LoglikelihoodRequest,
    LoglikelihoodResult,
)
from autoeval.models.splitting import split
from recorder.untrusted import PrintableRecord

logger = logging.getLogger(__name__)

_KINDS: dict[str, type[Exception]] = {
    one.__name__: one for one in (ValueError, OSError, FileNotFoundError, MemoryError, RuntimeError)
}


class DataParallelModel:
    """``LanguageModel`` over one process for each of ``devices``; ``options`` are ``HuggingFaceModel``'s others.

    ``cost``: tokens are summed over the processes, ``seconds`` are those from question to answer. A process that dies
    is a ``RuntimeError`` that says which and how; then the others are ended and the model cannot be asked any more
    (``alive``). Raises as ``HuggingFaceModel`` does.
    """

    def __init__(self, path: Path | str, *, devices: Sequence[str], **options: Any) -> None:
        if len(devices) < 1:
            raise ValueError("a model in several processes needs a device for each")
        self.path = Path(path)
        self.cost = Cost()
        self._children: list[_Child] = []
        threads = _threads(len(devices)) if all(name == "cpu" for name in devices) else None
        try:
            for device in devices:
                self._children.append(_Child(self.path, device, options, threads))
            facts = self._ask([("facts",)] * len(devices))
        except BaseException:
            self.unload()
            raise
        self.tokenizer: Any = facts[0]["tokenizer"]
        self.max_seq_len: int = facts[0]["max_seq_len"]
        self._prefix: int | None = facts[0]["prefix_token"]
        self._budget: int = facts[0]["batch_tokens"]
        logger.info("%s: loaded by %d processes, on %s", self.path, len(devices), ", ".join(devices))

    @property
    def device_count(self) -> int:
        """Devices that are held; processes that share one device (``cpu``) hold one."""
        return len({child.device for child in self._children})

    @property
    def alive(self) -> bool:
        return bool(self._children)

    @property
    def batch_tokens(self) -> int:
        """Tokens of one forward pass in one process."""
        return self._budget

    @batch_tokens.setter
    def batch_tokens(self, value: int) -> None:
        self._ask([("batch_tokens", value)] * len(self._children))
        self._budget = value

    @property
    def prefix_token(self) -> int:
        """As ``HuggingFaceModel.prefix_token``."""
        if self._prefix is None:
            raise ValueError(
                f"{self.path}: the tokenizer has neither BOS nor EOS, so an empty context cannot be scored"
            )
        return self._prefix

    def loglikelihoods(self, requests: Sequence[LoglikelihoodRequest]) -> list[LoglikelihoodResult]:
        """As ``HuggingFaceModel.loglikelihoods``."""
        return self._answers("loglikelihoods", requests)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        """As ``HuggingFaceModel.generate``."""
        return self._answers("generate", requests)

    def renew(self, directory: Path) -> bool:
        """The weights of ``directory`` into all modules (``in_place.Renewal``); ``False`` where they do not fit.

        Raises what reading them raises; then the model is torn and must be unloaded.
        """
        if not all(self._ask([("fits", directory)] * len(self._children))):
            return False
        self._ask([("renew", directory)] * len(self._children))
        self.path, self.cost = directory, Cost()
        return True

    def forget_peak(self) -> None:
        self._ask([("forget_peak",)] * len(self._children))

    def peak_bytes(self) -> float:
        """Of all processes together, since ``forget_peak``."""
        return float(sum(self._ask([("peak_bytes",)] * len(self._children))))

    def unload(self) -> None:
        """End the processes; the model cannot be asked any more."""
        for child in self._children:
            child.end()
        self._children = []

    def _answers(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        self._refuse_unloaded()
        started = time.perf_counter()
        parts, unique = split(requests, len(self._children), prefix=self._prefix, window=self.max_seq_len)
        answers: list[Any] = [None] * len(requests)
        orders = [(kind, [requests[number] for number in part]) for part in parts]
        costs = []
        for part, (found, cost) in zip(parts, self._ask(orders), strict=True):
            costs.append(cost)
            for number, one in zip(part, found, strict=True):
                answers[number] = one
        self._count(costs, unique, time.perf_counter() - started)
        return answers

    def _count(self, costs: Sequence[Cost], unique: int, seconds: float) -> None:
        """Sums, but for time, and for what is unique in one part and not in all."""
        for cost in costs:
            self.cost.prompt_tokens += cost.prompt_tokens
            self.cost.computed_tokens += cost.computed_tokens
            self.cost.generated_tokens += cost.generated_tokens
            for name, value in cost.extra.items():
                if name != "unique_tokens":
                    self.cost.extra[name] = self.cost.extra.get(name, 0) + value
        if any("unique_tokens" in cost.extra for cost in costs):
            self.cost.extra["unique_tokens"] = self.cost.extra.get("unique_tokens", 0) + unique
        self.cost.seconds += seconds

    def _ask(self, orders: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The answers of the first children to ``orders``, one each. All are awaited before an error is raised, so that
        no answer is left for the next question."""
        self._refuse_unloaded()
        children = self._children[: len(orders)]
        found: dict[int, tuple[str, Any]] = {}
        try:
            for child, order in zip(children, orders, strict=True):
                child.send(order)
            while len(found) < len(children):
                waiting = {child.connection: place for place, child in enumerate(children) if place not in found}
                for ready in connection.wait(list(waiting)):
                    place = waiting[ready]  # type: ignore[index]  # what was given is what comes back
                    found[place] = children[place].receive()
        except _Dead as error:
            self.unload()
            raise RuntimeError(f"{self.path}: {error}") from None
        except BaseException:  # Ctrl-C: answers that nobody has read would be taken for those of the next question
            self.unload()
            raise
        for place in range(len(children)):
            kind, value = found[place]
            if kind != "answer":
                raise _KINDS.get(kind, RuntimeError)(value)
        return [found[place][1] for place in range(len(children))]

    def _refuse_unloaded(self) -> None:
        if not self._children:
            raise ValueError(f"{self.path}: the model has been unloaded")


class _Dead(Exception):
    """A process has ended that should not have."""


class _Child:
    """A process with the model on ``device``, seen from here."""

    def __init__(self, path: Path, device: str, options: dict[str, Any], threads: int | None) -> None:
        # Not forked: a CUDA context, and threads that hold locks, do not survive it.
        context = get_context("spawn")
        self.device = device
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, path, device, options, threads, logging.getLogger().level), daemon=True
        )
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does

    def send(self, order: tuple[Any, ...]) -> None:
        try:
            self.connection.send(order)
        except (BrokenPipeError, ConnectionResetError):
            raise self._dead() from None

    def receive(self) -> tuple[str, Any]:
        try:
            answer: tuple[str, Any] = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._dead() from None
        return answer

    def _dead(self) -> _Dead:
        self.process.join(timeout=10)
        code = self.process.exitcode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
        return _Dead(f"the process that computes on {self.device} {how} (its own message, if any, is in the log)")

    def end(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _threads(processes: int) -> int:
    """Threads of each of ``processes`` on the CPU: together as many as this process would use."""
    import torch

    return max(1, torch.get_num_threads() // processes)


def _serve(
    orders: connection.Connection, path: Path, device: str, options: dict[str, Any], threads: int | None, level: int
) -> None:
    """The child: answer until the pipe is closed."""
    _end_with_parent()
    logging.setLogRecordFactory(PrintableRecord)
    logging.basicConfig(level=level, format=f"%(asctime)s %(levelname)s %(name)s [{device}]: %(message)s")
    server = _Server(path, device, options, threads)
    while True:
        try:
            order = orders.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[str, Any] = "answer", server.obey(*order)
        except Exception as error:
            logger.debug("%s failed", order[0], exc_info=True)
            kind = next((one.__name__ for one in type(error).__mro__ if one.__name__ in _KINDS), "")
            name = "" if type(error).__name__ == kind else f"{type(error).__name__}: "
            answer = kind or "RuntimeError", f"{name}{error}"
        try:
            orders.send(answer)
        except (BrokenPipeError, OSError):
            return


def _end_with_parent() -> None:
    """A computation under way would outlive a parent that is killed: nobody reads its answer."""
    import os
    import signal
    from multiprocessing import parent_process

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends this process
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Server:
    """What a child does. The model is loaded by the first order, so that an error in it is an answer."""

    def __init__(self, path: Path, device: str, options: dict[str, Any], threads: int | None) -> None:
        self._path, self._device, self._options, self._threads = path, device, options, threads
        self._model: Any = None
        self._files: str | None = None

    def obey(self, kind: str, *arguments: Any) -> Any:
        if self._model is None:
            self._load()
        return getattr(self, f"_{kind}")(*arguments)

    def _load(self) -> None:
        import torch

        from autoeval.models.hf import HuggingFaceModel
        from autoeval.models.in_place import deciding_files

        if self._threads is not None:
            torch.set_num_threads(self._threads)
        self._files = deciding_files(self._path)
        self._model = HuggingFaceModel(self._path, device=self._device, **self._options)

    def _facts(self) -> dict[str, Any]:
        model = self._model
        try:
            prefix = model.prefix_token
        except ValueError:
            prefix = None
        facts = {name: getattr(model, name) for name in ("tokenizer", "max_seq_len", "batch_tokens")}
        return {**facts, "prefix_token": prefix}

    def _batch_tokens(self, value: int) -> None:
        self._model.batch_tokens = value

    def _loglikelihoods(self, requests: Sequence[Any]) -> Any:
        self._model.cost = Cost()
        return self._model.loglikelihoods(requests), self._model.cost

    def _generate(self, requests: Sequence[Any]) -> Any:
        self._model.cost = Cost()
        return self._model.generate(requests), self._model.cost

    def _fits(self, directory: Path) -> bool:
        from autoeval.models.in_place import Renewal, shapes_in

        return Renewal(self._model, self._files).fits(directory, shapes_in(directory))

    def _renew(self, directory: Path) -> None:
        from autoeval.models.in_place import Renewal

        renewal = Renewal(self._model, self._files)
        renewal.read(directory)
        renewal.done(directory)

    def _forget_peak(self) -> None:
        from autoeval.models.peak import forget_peak

        forget_peak(self._model)

    def _peak_bytes(self) -> float:
        from autoeval.models.peak import peak_bytes

        return peak_bytes(self._model)
