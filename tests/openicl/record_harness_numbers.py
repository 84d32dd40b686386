"""Records what lm-evaluation-harness 0.4.13 gives for our items: its own prompts, log-likelihoods and decisions.

    python -m tests.openicl.record_harness_numbers [TASK ...]        with lm_eval==0.4.13 installed beside the project

The harness runs as it is (``ConfigurableTask`` with the fields of its own task files, ``HFLM``, ``simple_evaluate``);
only where the rows come from is ours: the files below AUTOEVAL_DATA, the items that our tasks' limit takes. Writes
``harness_numbers.json``, which ``test_openicl_equals_harness.py`` compares with.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoeval.openicl.sample import Sample
from autoeval.tasks.icl import load_icl_tasks
from tests.openicl.harness_models import KINDS, TASKS, limit_of, read_recorded, save_model

DATA = Path(os.environ.get("AUTOEVAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))

# The fields of the harness's own task files (lm_eval/tasks/**), but for the rows.
_MULTIPLE = {"output_type": "multiple_choice"}
_METRICS = [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "acc_bytes"}]
_MMLU = "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"
CONFIGS: dict[str, dict[str, Any]] = {
    "hellaswag": {"doc_to_text": "{{query}}", "doc_to_target": "{{gold}}", "doc_to_choice": "choices"},
    "piqa": {
        "doc_to_text": "Question: {{goal}}\nAnswer:",
        "doc_to_target": "label",
        "doc_to_choice": "{{[sol1, sol2]}}",
    },
    "winogrande": {},
    "arc": {
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
        "doc_to_choice": "{{choices.text}}",
    },
    "boolq": {
        "doc_to_text": "{{passage}}\nQuestion: {{question}}?\nAnswer:",
        "doc_to_target": "label",
        "doc_to_choice": ["no", "yes"],
    },
    "mmlu": {"doc_to_text": _MMLU, "doc_to_choice": ["A", "B", "C", "D"], "doc_to_target": "answer"},
    "lambada": {"doc_to_text": "{{text}}", "doc_to_target": "{{' '+last}}"},
    "gsm8k": {"doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": "{{answer}}"},
}


def docs_of(task: str, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Rows as the harness's data sets have them."""
    docs = []
    for sample in samples:
        row = sample.row
        if task == "hellaswag":
            docs.append({"query": row["ctx"], "choices": row["choices"], "gold": row["label"]})
        elif task == "piqa":
            docs.append({"goal": row["goal"], "sol1": row["sol1"], "sol2": row["sol2"], "label": row["answer"]})
        elif task == "winogrande":
            option1, option2 = row["choices"]
            docs.append(
                {"sentence": row["sentence"], "option1": option1, "option2": option2, "answer": str(row["answer"])}
            )
        elif task.startswith("arc"):
            letters = ["ABCDE"[i] for i in range(len(row["choices"]))]
            docs.append(
                {
                    "question": row["question"],
                    "choices": {"text": row["choices"], "label": letters},
                    "answerKey": row["letter"],
                }
            )
        elif task == "boolq":
            docs.append({"passage": row["passage"], "question": row["question"], "label": int(row["answer"] == "yes")})
        elif task == "mmlu":
            docs.append(
                {
                    "question": row["input"],
                    "choices": [row[letter] for letter in "ABCD"],
                    "answer": "ABCD".index(row["target"]),
                    "subject": row["subject"],
                }
            )
        elif task == "lambada":
            docs.append({"text": row["prompt"], "last": row["label"]})
        else:
            docs.append({"question": row["question"], "answer": row["answer"]})
    return docs


def harness_task(name: str, docs: Sequence[Mapping[str, Any]], shots: Sequence[Mapping[str, Any]], folder: Path) -> Any:
    """The harness's task over ``docs``, with ``shots`` as its few-shot examples in their order."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks.winogrande import preprocess_winogrande

    files = {"test": str(folder / f"{name}-test.jsonl")}
    if shots:
        files["dev"] = str(folder / f"{name}-dev.jsonl")
    for split, rows in (("test", docs), ("dev", shots)):
        (folder / f"{name}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kind = name.split("-", 1)[0]
    config: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        **CONFIGS["arc" if kind.startswith("arc") else kind],
    }
    if kind == "lambada":
        config |= {"output_type": "loglikelihood", "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}]}
    elif kind == "gsm8k":
        config |= {
            "output_type": "generate_until",
            "generation_kwargs": {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False},
            "metric_list": [
                {
                    "metric": "exact_match",
                    "ignore_case": True,
                    "ignore_punctuation": False,
                    "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
                }
            ],
            "filter_list": [
                {
                    "name": "flexible-extract",
                    "filter": [
                        {
                            "function": "regex",
                            "group_select": -1,
                            "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)",
                        },
                        {"function": "take_first"},
                    ],
                }
            ],
        }
    else:
        config |= _MULTIPLE | {"metric_list": _METRICS}
    if kind == "winogrande":
        config["metric_list"] = _METRICS[:1]
        for key in ("doc_to_text", "doc_to_target", "doc_to_choice"):
            config[key] = getattr(preprocess_winogrande, key)
    if kind == "mmlu":
        subject = str(docs[0]["subject"]).replace("_", " ")
        config["description"] = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    if shots:
        config |= {"fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}, "num_fewshot": len(shots)}
    return ConfigurableTask(config=config)


def run(model: Any, name: str, samples: Sequence[Sample], folder: Path) -> dict[str, Any]:
    """What the harness says of each sample, by its key."""
    from lm_eval import simple_evaluate

    docs = docs_of(name, samples)
    shots = docs_of(name, [Sample("", row, ()) for row in samples[0].examples]) if name != "mmlu" else []
    groups: dict[str, list[int]] = {}
    for place, doc in enumerate(docs):
        groups.setdefault(f"{name}-{doc['subject']}" if name == "mmlu" else name, []).append(place)
    tasks = []
    for group, places in groups.items():
        if name == "mmlu":
            shots = docs_of(name, [Sample("", row, ()) for row in samples[places[0]].examples])
        tasks.append(harness_task(group, [docs[place] for place in places], shots, folder))
    result = simple_evaluate(model=model, tasks=tasks, bootstrap_iters=0, log_samples=True)
    found: dict[str, Any] = {}
    for group, places in groups.items():
        for item in result["samples"][group]:
            found[samples[places[item["doc_id"]]].key] = _item(name, item)
    return {sample.key: found[sample.key] for sample in samples}


def _item(name: str, item: Mapping[str, Any]) -> dict[str, Any]:
    if name == "gsm8k":
        return {"text": item["resps"][0][0], "right": item["exact_match"]}
    made: dict[str, Any] = {"lls": [float(f"{float(pair[0]):.8g}") for pair in item["filtered_resps"]]}
    if name == "lambada":
        made = {"lls": [float(f"{float(item['filtered_resps'][0][0]):.8g}")]}
    for metric in ("acc", "acc_norm", "acc_bytes"):
        if metric in item:
            made[metric] = float(item[metric])
    return made


def main() -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    target = Path(__file__).with_name("harness_numbers.json")
    wanted = sys.argv[1:] or list(TASKS)
    recorded: dict[str, Any] = read_recorded() if target.exists() else {}
    recorded["lm_eval"] = lm_eval.__version__
    with tempfile.TemporaryDirectory() as temporary:
        for kind in KINDS:
            path = save_model(kind, Path(temporary, kind), DATA / "tokenizers" / "gpt2")
            model = HFLM(
                pretrained=str(path), dtype="float32", device="cpu", batch_size=1, add_bos_token=kind == "llama"
            )
            recorded.setdefault(kind, {})
            for name, config in ((name, TASKS[name]) for name in wanted):
                (task,) = load_icl_tasks([config], data_dir=DATA / "opencompass", limit=limit_of(name))
                folder = Path(temporary, f"{kind}-{name}")
                folder.mkdir()
                recorded[kind][name] = run(model, name, task.samples, folder)
                print(kind, name, len(recorded[kind][name]), flush=True)
    target.write_text(json.dumps(recorded, indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
