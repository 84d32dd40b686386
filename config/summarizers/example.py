"""Every dataset with all its metrics, and the averages of the groups that the run has all of."""

from mmengine.config import read_base

with read_base():
    from .groups.commonsense import commonsense_summary_groups

summarizer = dict(summary_groups=[*commonsense_summary_groups])
