"""Inferencers: prompts to the model, answers to records. OpenICL's class names.

Every inferencer asks what it needs (``asking.Asked``) and makes one record per sample of the answers, in the shape of
OpenCompass's predictions files, and says by ``kind`` what is in it: ``rank`` (a label), ``text``, ``probability`` (of each choice) or ``corpus`` (the cost of a text). A
log-probability that is not a finite number is an error: a broken model has no score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from autoeval.datasets.names import look_up
from autoeval.models.requests import LanguageModel
from autoeval.openicl.asking import Asked
from autoeval.openicl.corpus import PPLOnlyInferencer
from autoeval.openicl.generation import ChatInferencer, GenInferencer, SCInferencer
from autoeval.openicl.prompt_template import PromptTemplate
from autoeval.openicl.ranking import CLPInferencer, LLInferencer, PPLInferencer
from autoeval.openicl.sample import Prompting, Sample


class Inferencer(Protocol):
    kind: str
    continuation: PromptTemplate | None  # what is ranked, where it is not the prompt itself

    def ask(self, model: LanguageModel, samples: Sequence[Sample], prompting: Prompting) -> Asked: ...


INFERENCERS: dict[str, type] = {
    "PPLInferencer": PPLInferencer,
    "LLInferencer": LLInferencer,
    "loglikelihood": LLInferencer,
    "GenInferencer": GenInferencer,
    "CLPInferencer": CLPInferencer,
    "SCInferencer": SCInferencer,
    "ChatInferencer": ChatInferencer,
    "PPLOnlyInferencer": PPLOnlyInferencer,
}


# OpenCompass's configurations may have them: batches and the window are the model's business, every item is saved.
_NO_EFFECT = frozenset({"type", "batch_size", "max_seq_len", "save_every"})


def build_inferencer(options: Mapping[str, Any]) -> Inferencer:
    """From ``dict(type="GenInferencer", max_out_len=16)``."""
    keywords = {key: value for key, value in options.items() if key not in _NO_EFFECT}
    chosen = look_up(INFERENCERS, options.get("type", ""), "inferencer")
    try:
        return chosen(**keywords)
    except TypeError as error:
        raise ValueError(f"inferencer {chosen.__name__}: {error}") from error
