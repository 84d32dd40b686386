"""Which data files a HELM run entry needs, where they must lie, and where they come from. Imports no HELM.

HELM takes a file as downloaded when it is there. Paths are those of HELM 0.5.16, relative to ``<output_path>/scenarios``.
A scenario that is not in the table either makes its own data or names what it misses when it is run; any scenario can
be served from instances made elsewhere (``helm-run --cache-instances``), in ``<output_path>/scenario_instances``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoeval.helm.spec import HelmTask
from recorder.helm_names import split_description


@dataclass(frozen=True)
class DataFile:
    """``path`` under ``scenarios/``, where to get it, and the name it has there if that is another."""

    path: str
    url: str
    published_as: str = ""


_HELM_DATA = "https://storage.googleapis.com/crfm-helm-public/source_datasets/scenarios/summarization_scenario"
_CODALAB = "https://worksheets.codalab.org/rest/bundles/{}/contents/blob/"
_MSMARCO = "https://msmarco.blob.core.windows.net/msmarcoranking"
_RAFT = "https://www.dropbox.com/s/a5cyevryzw8rt4f/prompt_construction_settings.json?dl=0"
_BOOLQ = "https://huggingface.co/datasets/stanford-crfm/helm-scenarios/resolve/main/boolq"
_CONTRAST = "https://raw.githubusercontent.com/allenai/contrast-sets/main"
_OPENBOOKQA = "https://ai2-public-datasets.s3.amazonaws.com/open-book-qa/OpenBookQA-V1-Sep2018.zip"
_NARRATIVE = "https://github.com/deepmind/narrativeqa/archive/master.zip"
_IMDB = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
_CIVIL = "https://worksheets.codalab.org/rest/bundles/0x8cd3de0634154aeaad2ee6eb96723c6e/contents/blob/all_data_with_identities.csv"
_GSM = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
_TRUTHFUL = "https://raw.githubusercontent.com/sylinrl/TruthfulQA/d71c110897f5d31c5d7f309e7bc316c152f6f031/data/v1/TruthfulQA.csv"
_HELLASWAG = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data"

_FILES: dict[str, tuple[DataFile, ...]] = {
    "boolq": (
        DataFile("boolq/data/train", f"{_BOOLQ}/train.jsonl", "boolq/train.jsonl"),
        DataFile("boolq/data/dev", f"{_BOOLQ}/dev.jsonl", "boolq/dev.jsonl"),
        DataFile("boolq/data/boolq_perturbed.jsonl", f"{_CONTRAST}/BoolQ/boolq_perturbed.json", "boolq_perturbed.json"),
    ),
    "hellaswag": tuple(
        DataFile(f"hellaswag/data/{name}", f"{_HELLASWAG}/{name}")
        for name in ("hellaswag_train.jsonl", "hellaswag_val.jsonl")
    ),
    "openbookqa": tuple(
        DataFile(
            f"openbookqa/data/OpenBookQA-V1-Sep2018/Data/Main/{split}.jsonl",
            _OPENBOOKQA,
            f"OpenBookQA-V1-Sep2018/Data/Main/{split}.jsonl",
        )
        for split in ("train", "test")
    ),
    "gsm": tuple(
        DataFile(f"gsm/gsm_data_{split}", f"{_GSM}/{split}.jsonl", f"grade_school_math/data/{split}.jsonl")
        for split in ("train", "test")
    ),
    "narrative_qa": tuple(
        DataFile(f"narrativeqa/data/narrativeqa-master/{name}", _NARRATIVE, f"narrativeqa-master/{name}")
        for name in ("qaps.csv", "third_party/wikipedia/summaries.csv")
    ),
    "truthful_qa": (DataFile("truthful_qa/data/TruthfulQA.csv", _TRUTHFUL),),
    "imdb": (
        *(
            DataFile(f"imdb/data/{split}/{kind}", _IMDB, f"aclImdb/{split}/{kind}")
            for split in ("train", "test")
            for kind in ("pos", "neg")
        ),
        *(
            DataFile(f"imdb/data/{split}_{kind}.tsv", f"{_CONTRAST}/IMDb/data/{split}_{kind}.tsv")
            for split in ("test", "dev")
            for kind in ("original", "contrast")
        ),
    ),
    "natural_qa": tuple(
        DataFile(
            f"natural_qa/data/nq-dev-{number:02}.jsonl.gz",
            f"https://storage.googleapis.com/natural_questions/v1.0/dev/nq-dev-{number:02}.jsonl.gz",
        )
        for number in range(5)
    ),
    "quac": tuple(
        DataFile(
            f"quac/data/{split}.json",
            f"https://s3.amazonaws.com/my89public/quac/{split}_v0.2.json",
            f"{split}_v0.2.json",
        )
        for split in ("train", "val")
    ),
    "civil_comments": (DataFile("civil_comments/wilds_civil_comments.csv", _CIVIL, "all_data_with_identities.csv"),),
    "summarization_xsum": (DataFile("summarization/data/xsum.pk", f"{_HELM_DATA}/xsum.pk"),),
    "summarization_xsum_sampled": (DataFile("summarization/data/xsum-sampled.pk", f"{_HELM_DATA}/xsum-sampled.pk"),),
    "summarization_cnndm": (DataFile("summarization/data/cnndm.pk", f"{_HELM_DATA}/cnndm.pk"),),
    "raft": tuple(
        DataFile(f"raft/{folder}prompt_construction_settings.json", _RAFT, "prompt_construction_settings.json")
        for folder in ("", "data/")
    ),
}
_MSMARCO_FILES = {
    "documents": _CODALAB.format("0x50d32fc56ad04dd89510bf86f9c1c9d3"),
    "train_queries": f"{_MSMARCO}/queries.train.tsv",
    "train_qrels": f"{_MSMARCO}/qrels.train.tsv",
    "train_topk": _CODALAB.format("0x8c43d4ec02ea48d6a727683a9676b77b"),
    "regular_queries": _CODALAB.format("0xf5ccf54707b548f9a4c43502c6f15719"),
    "regular_qrels": f"{_MSMARCO}/qrels.dev.small.tsv",
    "regular_topk": _CODALAB.format("0xbc3dfacb2b7746809e582ee01fa5fe70"),
    "trec_queries": f"{_MSMARCO}/msmarco-test2019-queries.tsv.gz",
    "trec_qrels": "https://trec.nist.gov/data/deep/2019qrels-pass.txt",
    "trec_topk": _CODALAB.format("0x2e80572f93b748d594b817249013bdac"),
}
# Directories of scenarios whose name on disk is not that of the run entry.
_SCENARIO_FOLDERS = {"narrative_qa": "narrativeqa", "summarization_xsum": "summarization",
                     "summarization_cnndm": "summarization", "summarization_xsum_sampled": "summarization"}  # fmt: skip
# Scenarios whose examples come through the Hugging Face hub: files alone don't do, instances must be staged.
_FROM_THE_HUB = {"raft"}


def files_of(entry: str) -> tuple[DataFile, ...]:
    """The files of a run entry such as ``mmlu:subject=anatomy``; empty for a scenario that is not in the table."""
    name, arguments = split_description(entry)
    if name == "mmlu":
        subject = arguments.get("subject", "philosophy")
        return tuple(
            DataFile(f"mmlu/data/{split}/{subject}_{split}.csv", "https://people.eecs.berkeley.edu/~hendrycks/data.tar")
            for split in ("dev", "val", "test")
        )
    if name == "commonsense":
        return _FILES.get(arguments.get("dataset", ""), ())
    if name == "msmarco":
        wanted = ("documents", "train_", f"{arguments.get('track', 'regular')}_")
        return tuple(
            DataFile(f"msmarco/data/{key}.tsv", url, url.rpartition("/")[2])
            for key, url in _MSMARCO_FILES.items()
            if key.startswith(wanted)
        )
    return _FILES.get(name, ())


def all_files() -> tuple[DataFile, ...]:
    """Every file of the table with a fixed name (all but mmlu's, which are laid out as a whole)."""
    files = [file for of_scenario in _FILES.values() for file in of_scenario]
    return (*files, *files_of("msmarco:track=regular"), *files_of("msmarco:track=trec"))


def staged_instances(entry: str, output_path: Path) -> Path | None:
    """The instances file staged for ``entry``: of its scenario, with no argument that contradicts the entry's."""
    name, arguments = split_description(entry)
    folder = _SCENARIO_FOLDERS.get(name, arguments.get("dataset", name) if name == "commonsense" else name)
    for path in sorted((output_path / "scenario_instances").glob(f"{folder}*/input_instances.json")):
        scenario, _, rest = path.parent.name.partition(":")
        pairs = dict(part.partition("=")[::2] for part in rest.split(",")) if rest else {}
        if scenario == folder and all(pairs.get(key, value) == value for key, value in arguments.items()):
            return path
    return None


def describe(entry: str, output_path: Path) -> tuple[list[str], list[str]]:
    """(what is there, what is missing) for one run entry, a line a file; what is missing says where to get it."""
    staged = staged_instances(entry, output_path)
    if staged is not None:
        return [str(staged)], []
    there: list[str] = []
    missing: list[str] = []
    for file in files_of(entry):
        path = output_path / "scenarios" / file.path
        (there if path.exists() else missing).append(str(path) if path.exists() else f"{path} (from {file.url})")
    if split_description(entry)[0] in _FROM_THE_HUB:
        place = output_path / "scenario_instances"
        missing.append(f"instances in {place} (made on a connected machine by helm-run --cache-instances-only)")
    return there, missing


def examine_data(tasks: Sequence[HelmTask], output_path: Path) -> str:
    """What is there for each task. Raises ``ValueError`` with all that is missing, where it must lie and its source."""
    there_of: dict[str, int] = {}
    missing: list[str] = []
    for task in tasks:
        for entry in task.entries:
            there, absent = describe(entry, output_path)
            there_of[task.name] = there_of.get(task.name, 0) + len(there)
            missing += [f"{task.name}: {line}" for line in absent]
    try:
        punkt = _punkt(output_path)
    except ValueError as error:
        missing.append(str(error))
    counts = ", ".join(f"{name} {count}" for name, count in there_of.items())
    if missing:
        lines = "".join(f"\n    {line}" for line in dict.fromkeys(missing))
        raise ValueError(
            f"files that are there: {counts}; missing (python -m autoeval.helm.stage lays them out):{lines}"
        )
    return f"files of {counts}; {punkt}"


def _punkt(output_path: Path) -> str:
    places = [output_path / "nltk_data", *(Path(part) for part in os.environ.get("NLTK_DATA", "").split(os.pathsep))]
    places += [
        Path.home() / "nltk_data",
        *(Path(f"/usr/{where}/nltk_data") for where in ("share", "local/share", "lib")),
    ]
    for place in places:
        if (place / "tokenizers" / "punkt_tab" / "english").is_dir():
            return str(place / "tokenizers" / "punkt_tab")
    raise ValueError(
        f"nltk's punkt_tab, for the metrics: expected {places[0] / 'tokenizers' / 'punkt_tab'}, or a directory that NLTK_DATA names "
        "(from https://github.com/nltk/nltk_data, packages/tokenizers/punkt_tab.zip)"
    )
