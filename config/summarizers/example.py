"""Every dataset with all its metrics, and the averages of the groups that the run has all of."""

from mmengine.config import read_base

with read_base():
    from .groups.agieval import agieval_summary_groups
    from .groups.bbh import bbh_summary_groups
    from .groups.commonsense import commonsense_summary_groups

summarizer = dict(summary_groups=[*bbh_summary_groups, *agieval_summary_groups, *commonsense_summary_groups])
