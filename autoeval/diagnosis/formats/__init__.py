"""The kinds of training logs, each told from the others by its content. A new kind is a module and a line here."""

from __future__ import annotations

import re
from typing import Any, Protocol

from autoeval.diagnosis.formats.deepspeed_chat import DeepSpeedChat
from autoeval.diagnosis.formats.hf_trainer import PrintedDicts, TrainerState
from autoeval.diagnosis.formats.llama_factory import LlamaFactory
from autoeval.diagnosis.formats.megatron import Megatron
from autoeval.diagnosis.formats.mlperf import MLPerf
from autoeval.diagnosis.formats.nanogpt import NanoGPT
from autoeval.diagnosis.formats.olmo import Olmo
from autoeval.diagnosis.readings import Facts, Readings


class Format(Protocol):
    """A parser. ``read`` gets whole lines, without colours and carriage returns, in the order of the log.

    ``axis`` is what ``iteration`` counts. A row at most ``stragglers`` rows back is one that another rank printed late,
    not a run that was resumed. ``sign`` matches what only logs of this kind have. ``preamble`` is called,
    before ``read``, with the text until the first training rows. ``state`` is JSON, from which ``restore`` goes on.
    """

    name: str
    axis: str
    stragglers: int
    sign: re.Pattern[bytes]

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...
    def preamble(self, text: bytes, facts: Facts) -> None: ...
    def read(self, text: bytes, readings: Readings) -> None: ...


# Where two have as many signs, the first: DeepSpeed prints its own lines in others' logs too.
FORMATS: tuple[type[Format], ...] = (
    Megatron,
    TrainerState,
    LlamaFactory,
    PrintedDicts,
    Olmo,
    NanoGPT,
    MLPerf,
    DeepSpeedChat,
)


def recognise(text: bytes) -> type[Format] | None:
    """The kind of which ``text`` has most signs, ``None`` when it has none. DeepSpeed-Chat only when nothing else."""
    counts = {kind: sum(1 for _ in kind.sign.finditer(text)) for kind in FORMATS}
    best = max(FORMATS[:-1], key=lambda kind: counts[kind])
    if counts[best]:
        return best
    return FORMATS[-1] if counts[FORMATS[-1]] else None
