"""``runner`` and ``conversion_runner`` of evaluator.yaml: a shape a type, and what is wrong with its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from autoeval.config import (
    AutoEval,
    CopiesSection,
    HelmSection,
    IclSection,
    LogsSection,
    MegatronSection,
    ModelSection,
    SettleSection,
    load_config,
)
from autoeval.yaml_file import ConfigError

RUN = """auto_eval:
  project_name: demo
  model_name: m
  work_dir: out
  huggingface: {checkpoint_path: ckpt}
  icl: {datasets: [hellaswag_ppl]}
"""


def read(directory: Path, section: str) -> AutoEval:
    path = directory / "evaluator.yaml"
    path.write_text(RUN + section)
    return load_config(path)[0]


def test_nothing_said_means_one_worker_here(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    assert config.runner.options()["type"] == "local" and config.runner.max_num_workers == 1
    assert config.runner.attempts == 3 and config.conversion_runner is None


def test_every_type_with_the_keys_of_run_py(tmp_path: Path) -> None:
    slurm = read(
        tmp_path,
        "  runner: {type: slurm, partition: p, quotatype: auto, qos: q, account: a, gres: 'gpu:a100', num_gpus: 2,"
        " num_cpus: 8, memory_gb: 64, minutes: 120, extra: ['--exclude=n7'], max_num_workers: 8, retry: 4}\n"
        "  conversion_runner: {type: local}\n",
    )
    given = slurm.runner.options()
    assert (given["partition"], given["gres"], given["num_gpus"], given["extra"]) == (
        "p",
        "gpu:a100",
        2,
        ["--exclude=n7"],
    )
    assert slurm.runner.attempts == 5 and slurm.conversion_runner is not None
    dlc = read(
        tmp_path, "  runner: {type: dlc, aliyun_cfg: {workspace_id: 7, worker_image: i, data_sources: 'd-1,d-2'}}\n"
    )
    assert dlc.runner.options()["aliyun_cfg"] == {"workspace_id": "7", "worker_image": "i", "data_sources": "d-1,d-2"}
    assert read(tmp_path, "  runner: {type: dlc, aliyun_cfg: a.cfg}\n").runner.options()["aliyun_cfg"] == str(
        tmp_path / "a.cfg"
    )
    assert read(tmp_path, "  runner: {type: ray}\n").runner.options()["address"] == "auto"


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ("  runner: {type: pbs}\n", "evaluator.yaml:7: auto_eval.runner.type: 'type' is none of local, slurm, dlc and ray, found 'pbs'"),
        ("  runner: slurm\n", "evaluator.yaml:7: auto_eval.runner: 'type' is none of"),
        ("  runner: {type: slurm, partion: p}\n", "evaluator.yaml:7: auto_eval.runner.partion: unknown key; did you mean 'partition'?"),
        ("  runner: {type: ray, partition: p}\n", "auto_eval.runner.partition: unknown key; known keys: address, detach"),
        ("  runner:\n    type: slurm\n    minutes: -2\n", "evaluator.yaml:9: auto_eval.runner.minutes: Input should be greater than 0, found -2"),
        ("  runner: {type: slurm, extra: [exclude]}\n", "auto_eval.runner.extra.0: expected an option of sbatch"),
        ("  runner: {type: slurm, retry: 1, max_attempts: 2}\n", "'retry' and 'max_attempts' say the same"),
        ("  runner: {type: dlc}\n", "auto_eval.runner.aliyun_cfg: the key is missing"),
        (
            "  conversion_runner:\n    type: dlc\n    aliyun_cfg:\n      workspace_id: 7\n      worker_imag: i\n",
            "evaluator.yaml:11: auto_eval.conversion_runner.aliyun_cfg.worker_imag: unknown key; did you mean 'worker_image'?",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_has_its_line(tmp_path: Path, section: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, section)
    assert complaint in str(caught.value)


def test_the_commented_example_is_right_with_each_of_its_runners(tmp_path: Path) -> None:
    """As it is, and with every commented ``runner`` in turn."""
    text = (Path(__file__).resolve().parents[2] / "config" / "evaluator.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    starts = [place for place, line in enumerate(lines) if line.startswith("  # runner:")]
    types = []
    for start in [None, *starts]:
        shown = list(lines)
        place = start
        while place is not None and (place == start or shown[place].startswith("  #   ")):
            shown[place] = shown[place].replace("# ", "", 1)
            place += 1
        path = tmp_path / "evaluator.yaml"
        path.write_text("\n".join(shown) + "\n", encoding="utf-8")
        types.append(load_config(path)[0].runner.options()["type"])
    assert types == ["local", "local", "slurm", "ray", "dlc"]


def test_the_commented_example_names_every_key() -> None:
    """It is the reference: a key that it lacks is one that nobody finds."""
    text = (Path(__file__).resolve().parents[2] / "config" / "evaluator.yaml").read_text(encoding="utf-8")
    sections = [
        AutoEval,
        ModelSection,
        MegatronSection,
        HelmSection,
        IclSection,
        SettleSection,
        LogsSection,
        CopiesSection,
    ]
    keys = [name for section in sections for name in section.model_fields]
    assert [key for key in keys if not re.search(rf"\b{key}\b", text)] == []


@pytest.mark.parametrize("section", ["icl", "helm", "model", "logs", "copies", "max_backlog", "baselines"])
def test_the_commented_examples_sections_are_right(tmp_path: Path, section: str) -> None:
    lines = (Path(__file__).resolve().parents[2] / "config" / "evaluator.yaml").read_text(encoding="utf-8").splitlines()
    inside = False
    for place, line in enumerate(lines):
        begins = re.match(rf"  (?:# )?{section}:", line) is not None
        inside = begins or (inside and re.match(r"  #?   ", line) is not None)
        if inside:
            lines[place] = line.replace("# ", "", 1) if line.lstrip().startswith("# ") else line
    path = tmp_path / "evaluator.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert section in load_config(path)[0].model_fields_set
