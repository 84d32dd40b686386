"""TruthfulQA: multiple choice (MC1, MC2) and generation."""

from mmengine.config import read_base

with read_base():
    from .truthfulqa_gen import truthfulqa_gen_datasets  # noqa: F401
    from .truthfulqa_mc1 import truthfulqa_mc1_datasets  # noqa: F401
    from .truthfulqa_mc2 import truthfulqa_mc2_datasets  # noqa: F401
