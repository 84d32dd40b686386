"""Sentence embeddings from a local sentence-transformers (SBERT) directory; nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy


class EmbeddingError(ValueError):
    """The directory holds no model that can be loaded; the message names it."""


class Embedder:
    """Raises ``EmbeddingError`` naming ``directory`` when it is missing or holds no model."""

    def __init__(self, directory: Path, device: str | None = None) -> None:
        if not directory.is_dir():
            raise EmbeddingError(f"{directory}: no such directory; expected a sentence-transformers model")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from sentence_transformers import SentenceTransformer

        try:
            self._model = SentenceTransformer(
                str(directory), device=device, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
            said = str(error).strip().splitlines()[:1]
            why = said[0] if said else type(error).__name__
            raise EmbeddingError(f"{directory}: no sentence-transformers model: {why}") from error

    def embed(
        self, texts: Sequence[str], *, batch_size: int = 64, progress: Callable[[int], object] = lambda texts: None
    ) -> numpy.ndarray:
        """Unit vectors (texts, dimensions), float32. Each different text is computed once, the longest first."""
        unique = list(dict.fromkeys(texts))
        order = sorted(range(len(unique)), key=lambda place: -len(unique[place]))
        vectors: numpy.ndarray | None = None
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = self._model.encode(
                [unique[place] for place in places],
                batch_size=batch_size,
                convert_to_numpy=True,
                normalize_embeddings=True,
                show_progress_bar=False,
            ).astype(numpy.float32)
            if vectors is None:
                vectors = numpy.empty((len(unique), batch.shape[1]), dtype=numpy.float32)
            vectors[places] = batch
            progress(len(places))
        if vectors is None:
            return numpy.empty((0, 0), dtype=numpy.float32)
        # Unit length again: what the model returns may be rounded to half precision.
        vectors /= numpy.maximum(numpy.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        place_of = {text: place for place, text in enumerate(unique)}
        return vectors[[place_of[text] for text in texts]]
