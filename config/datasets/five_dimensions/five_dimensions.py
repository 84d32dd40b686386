"""The five dimensions of eval/evaluate_model_from_five_dimensions.py: for evaluator.py, run.py and that script alike."""

from mmengine.config import read_base

with read_base():
    from .chinese_language_skill import chinese_language_skill_datasets  # noqa: F401
    from .command_compliance import command_compliance_datasets  # noqa: F401
    from .inference_ability import inference_ability_datasets  # noqa: F401
    from .innovation_capacity import innovation_capacity_datasets  # noqa: F401
    from .reading_comprehension import reading_comprehension_datasets  # noqa: F401
