"""The name that OpenCompass's users type; the same task as ``boolq_gen``."""

from mmengine.config import read_base

with read_base():
    from .boolq_gen import boolq_gen_datasets  # noqa: F401
