"""Zero-shot common sense, as Llama's papers group it."""

_perplexity = ["hellaswag", "piqa", "winogrande", "ARC-e", "ARC-c"]

commonsense_summary_groups = [
    dict(name="commonsense", subsets=_perplexity),
    dict(name="commonsense_ll", subsets=[f"{name}_ll" for name in ("hellaswag", "piqa", "ARC-e", "ARC-c")]),
]
