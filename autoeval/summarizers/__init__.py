"""Summarizers: the results of a run as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoeval.datasets.names import look_up
from autoeval.summarizers.default import DefaultSummarizer

SUMMARIZERS = {"DefaultSummarizer": DefaultSummarizer}


def build_summarizer(options: Mapping[str, Any]) -> DefaultSummarizer:
    """From ``dict(dataset_abbrs=[...], summary_groups=[...])``. Raises ``ValueError`` for what it does not know."""
    keywords = {key: value for key, value in options.items() if key != "type"}
    chosen = look_up(SUMMARIZERS, options.get("type", "DefaultSummarizer"), "summarizer")
    try:
        return chosen(**keywords)
    except TypeError as error:
        raise ValueError(f"summarizer {chosen.__name__}: {error}") from error
