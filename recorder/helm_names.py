"""What HELM calls its benchmarks and metrics: for the tasks that we run and for the output of ``helm-run`` alike."""

from __future__ import annotations

import re

# HELM's short display names (schema_classic.yaml) -> the names of the statistics in stats.json.
DISPLAY_TO_METRIC: dict[str, str] = {
    "EM": "exact_match",
    "quasi-EM": "quasi_exact_match",
    "PEM": "prefix_exact_match",
    "PQEM": "quasi_prefix_exact_match",
    "EM-indicator": "exact_match_indicator",
    "F1": "f1_score",
    "EM (final number)": "final_number_exact_match",
    "ROUGE-1": "rouge_1",
    "ROUGE-2": "rouge_2",
    "ROUGE-L": "rouge_l",
    "BLEU-1": "bleu_1",
    "BLEU-4": "bleu_4",
    "RR@10": "RR@10",
    "NDCG@10": "NDCG@10",
    "F1 (set match)": "f1_set_match",
    "IoU (set match)": "iou_set_match",
    "EM (set match)": "exact_set_match",
    "Macro-F1": "classification_macro_f1",
    "Micro-F1": "classification_micro_f1",
    "ECE (10-bin)": "ece_10_bin",
    "bits/byte": "bits_per_byte",
    "BPB": "bits_per_byte",
    "PPL": "perplexity",
}
_METRIC_TO_DISPLAY = {metric: display for display, metric in DISPLAY_TO_METRIC.items()}
_DISPLAY_FOLDED = {display.casefold(): metric for display, metric in DISPLAY_TO_METRIC.items()}

# One run-spec function that serves several benchmarks: which argument tells them apart, and whether its value alone is
# the benchmark's usual name (commonsense:dataset=hellaswag is "hellaswag", natural_qa:mode=closedbook is
# "natural_qa_closedbook": these are HELM's own run group names).
_SPLIT_BY: dict[str, tuple[str, bool]] = {
    "commonsense": ("dataset", True),
    "natural_qa": ("mode", False),
    "msmarco": ("track", False),
}

# The split that HELM reports of its core scenarios (schema_classic.yaml).
_MAIN_SPLIT: dict[str, str] = {
    **dict.fromkeys(
        ("mmlu", "narrative_qa", "openbookqa", "summarization_cnndm", "summarization_xsum", "raft", "civil_comments"), "test"
    ),
    **dict.fromkeys(
        ("boolq", "natural_qa_closedbook", "natural_qa_openbook_longans", "quac", "hellaswag", "truthful_qa", "imdb",
         "msmarco_regular", "msmarco_trec"), "valid"
    ),
}  # fmt: skip

_ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9_.\-]+)(:(?P<arguments>.+))?$", re.DOTALL)


def benchmark_name(description: str) -> str:
    """The benchmark an entry belongs to: ``mmlu:subject=anatomy`` -> ``mmlu``."""
    name, arguments = split_description(description)
    if name in _SPLIT_BY:
        argument, alone = _SPLIT_BY[name]
        if argument in arguments:
            return arguments[argument] if alone else f"{name}_{arguments[argument]}"
    return name


def main_splits(benchmark: str) -> tuple[str, ...]:
    """Where the value of ``benchmark`` is: one split for HELM's core scenarios, else the first of these that has one."""
    return (_MAIN_SPLIT[benchmark],) if benchmark in _MAIN_SPLIT else ("test", "valid")


def split_description(description: str) -> tuple[str, dict[str, str]]:
    """``name:key=value,…`` -> (name, arguments). Raises ``ValueError`` for anything else."""
    match = _ENTRY.match(description.strip())
    if match is None:
        raise ValueError(f"expected <name>:<key>=<value>,…, got {description!r}")
    arguments: dict[str, str] = {}
    for part in (match["arguments"] or "").split(",") if match["arguments"] else ():
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"expected <key>=<value>, got {part!r} in {description!r}")
        arguments[key.strip()] = value.strip()
    return match["name"], arguments


def helm_metric(display: str) -> str:
    """The name in stats.json of a display metric; a name that isn't HELM's display name is returned as it is."""
    return _DISPLAY_FOLDED.get(display.casefold(), display)


def display_metric(metric: str) -> str:
    """The display name of a metric of stats.json: ``quasi_exact_match`` -> ``quasi-EM``."""
    return _METRIC_TO_DISPLAY.get(metric, metric)
