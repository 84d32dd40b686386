"""Where something of evaluator.yaml is: a path here, or the URL of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, PlainValidator

from autoeval.storage import check_options, is_url
from autoeval.storage.options import check_url


class Url(str):
    """``scheme://bucket/path``, with no credentials in it."""

    __slots__ = ()


def _located(value: Any) -> Path | Url:
    if isinstance(value, (Path, Url)):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("expected a path, or a URL like s3://bucket/path")
    return Url(check_url(value)) if is_url(value) else Path(value)


Location: TypeAlias = Annotated[Path | Url, PlainValidator(_located)]
StorageOptions: TypeAlias = Annotated[dict[str, Any], AfterValidator(check_options)]
