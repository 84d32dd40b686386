"""A dataset of one's own in a few lines: what file, which columns, which prompt, which metric.

    own_datasets = [
        dict(
            path="capitals.jsonl",                            # .jsonl, .json, .csv or .tsv; or dict(train=..., test=...)
            columns=dict(answer="gold", choices="options"),   # what the columns mean
            template="Question: {question}\\nAnswer:",         # what comes before the answer
            metric="acc",
        )
    ]

``choices`` names a column that holds a list (the answer is an index into it), or is a list of columns, one a choice (the
answer is the name of one). ``metric``: ``acc`` and ``acc_norm`` rank the choices by log-likelihood, ``ppl`` by the
perplexity of the whole; without choices a text is generated, up to the end of the line, and scored by ``exact_match``,
``acc``, ``f1``, ``squad``, ``cmrc``, ``rouge``, ``bleu`` or ``math``; ``bpb`` without an answer is the cost of the text that
the template makes. Optional: ``abbr`` (else the file's name), ``shots`` (so many rows of ``train`` before each question),
``max_out_len`` (50), ``stop`` (``["\\n"]``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TYPES = {".jsonl": "JsonlDataset", ".json": "JsonDataset", ".csv": "CsvDataset", ".tsv": "CsvDataset"}
_RANKED = {"acc", "acc_norm", "ppl"}
_GENERATED = {
    "exact_match": "EMEvaluator",
    "acc": "AccEvaluator",
    "f1": "F1Evaluator",
    "squad": "SquadEvaluator",
    "cmrc": "CMRCEvaluator",
    "rouge": "RougeEvaluator",
    "bleu": "BleuEvaluator",
    "math": "MATHEvaluator",
}
_KEYS = {"abbr", "type", "path", "columns", "template", "metric", "shots", "max_out_len", "stop", "delimiter"}
_SHOTS = "</E>"


def is_short(entry: Mapping[str, Any]) -> bool:
    return "template" in entry and "infer_cfg" not in entry


def expanded(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The whole configuration that a short one stands for. Raises ``ValueError`` for what it lacks or has too much."""
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        raise ValueError(f"unknown key '{unknown[0]}' (known: {', '.join(sorted(_KEYS))})")
    missing = [key for key in ("path", "metric") if key not in entry]
    if missing:
        raise ValueError(f"a dataset with template lacks {', '.join(missing)}")
    path, columns = entry["path"], dict(entry.get("columns") or {})
    test = Path(path if isinstance(path, str) else path.get("test", ""))
    unknown = sorted(set(columns) - {"answer", "choices"})
    if unknown:
        raise ValueError(f"columns has an unknown key '{unknown[0]}', expected answer and choices")
    made: dict[str, Any] = {
        "abbr": entry.get("abbr", test.stem),
        "type": entry.get("type") or _type(test),
        "path": path,
        "reader_cfg": {"output_column": columns["answer"]} if "answer" in columns else {},
    }
    if test.suffix == ".tsv" or "delimiter" in entry:
        made["delimiter"] = entry.get("delimiter", "\t")
    if "choices" in columns:
        inferencer, example = _ranked(entry, columns, made["reader_cfg"])
        evaluator = "AccEvaluator"
    else:
        inferencer, example, evaluator = _unranked(entry, columns)
    return {
        **made,
        "infer_cfg": _infer_cfg(entry, inferencer, example),
        "eval_cfg": {"evaluator": {"type": evaluator}, **_cleaning(inferencer)},
    }


def _type(test: Path) -> str:
    if test.suffix not in _TYPES:
        raise ValueError(f"path '{test}': expected a name that ends in {', '.join(_TYPES)}, or a type")
    return _TYPES[test.suffix]


def _ranked(entry: Mapping[str, Any], columns: Mapping[str, Any], reader: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The inferencer, and what follows the template in an example."""
    metric, choices = entry["metric"], columns["choices"]
    if metric not in _RANKED:
        raise ValueError(f"metric '{metric}' does not go with choices, expected one of {', '.join(sorted(_RANKED))}")
    if "answer" not in columns:
        raise ValueError("columns lacks answer")
    if isinstance(choices, str):
        reader["choices_column"] = choices
        answer: Any = " {choice}"
    else:
        answer = {column: " {" + column + "}" for column in choices}
    if metric == "ppl":
        return {"type": "PPLInferencer"}, answer
    return {"type": "LLInferencer", "continuation": answer}, answer


def _unranked(entry: Mapping[str, Any], columns: Mapping[str, Any]) -> tuple[dict[str, Any], Any, str]:
    metric = entry["metric"]
    if metric == "bpb":
        if columns:
            raise ValueError("metric 'bpb' is that of a text: it has no answer and no choices")
        return {"type": "PPLOnlyInferencer"}, "", "BPBEvaluator"
    if metric not in _GENERATED:
        known = ", ".join(sorted({*_GENERATED, "bpb"}))
        raise ValueError(f"metric '{metric}' needs columns=dict(choices=...), or one of {known}")
    if "answer" not in columns:
        raise ValueError("columns lacks answer")
    options = {"max_out_len": entry.get("max_out_len", 50), "stop": entry.get("stop", ["\n"])}
    return {"type": "GenInferencer", **options}, " {" + columns["answer"] + "}", _GENERATED[metric]


def _infer_cfg(entry: Mapping[str, Any], inferencer: dict[str, Any], answer: Any) -> dict[str, Any]:
    template, shots = entry["template"], int(entry.get("shots", 0))
    if not isinstance(template, str):
        raise ValueError("template is the text before the answer; write infer_cfg for anything else")

    def whole(text: str) -> Any:
        if isinstance(answer, Mapping):
            return {label: text + one for label, one in answer.items()}
        return text + answer

    prompt = whole(template) if inferencer["type"] == "PPLInferencer" else template
    made: dict[str, Any] = {
        "prompt_template": {"type": "PromptTemplate", "template": prompt},
        "retriever": {"type": "ZeroRetriever"},
        "inferencer": inferencer,
    }
    if not shots:
        return made
    marked = {label: _SHOTS + text for label, text in prompt.items()} if isinstance(prompt, dict) else _SHOTS + prompt
    made["prompt_template"] = {"type": "PromptTemplate", "template": marked, "ice_token": _SHOTS}
    made["ice_template"] = {"type": "PromptTemplate", "template": whole(template)}
    made["retriever"] = {
        "type": "FixKRetriever",
        "fix_id_list": list(range(shots)),
        "ice_separator": "\n\n",
        "ice_eos_token": "\n\n",
    }
    return made


def _cleaning(inferencer: Mapping[str, Any]) -> dict[str, Sequence[Any] | Mapping[str, Any]]:
    return {"pred_postprocessor": {"type": "first-line"}} if inferencer["type"] == "GenInferencer" else {}
