"""BUSTM (FewCLUE), ranked and generated."""

from mmengine.config import read_base

with read_base():
    from .FewCLUE_bustm_gen import bustm_gen_datasets  # noqa: F401
    from .FewCLUE_bustm_ppl import bustm_datasets  # noqa: F401
