"""The name that OpenCompass's users type; the same task as ``boolq_ppl``."""

from mmengine.config import read_base

with read_base():
    from .boolq_ppl import boolq_datasets  # noqa: F401
