"""EPRSTMT (FewCLUE), ranked and generated."""

from mmengine.config import read_base

with read_base():
    from .FewCLUE_eprstmt_gen import eprstmt_gen_datasets  # noqa: F401
    from .FewCLUE_eprstmt_ppl import eprstmt_datasets  # noqa: F401
