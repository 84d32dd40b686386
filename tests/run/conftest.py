"""A small world: two models, three datasets of our own, and run.py as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import save_tiny_model

REPOSITORY = Path(__file__).resolve().parents[2]

ANIMALS = ["cat", "dog", "fox", "mat", "sky"]
PPL = """
{name}_datasets = [
    dict(
        abbr="{name}",
        type="JsonlDataset",
        path="./data/{name}.jsonl",
        reader_cfg=dict(input_columns=["q"], output_column="gold"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template={{"A": "Q: {{q}} A: yes", "B": "Q: {{q}} A: no"}}),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
"""
GEN = """
{name}_datasets = [
    dict(
        abbr="{name}",
        type="JsonlDataset",
        path="./data/{name}.jsonl",
        reader_cfg=dict(input_columns=["q"], output_column="gold"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(round=[dict(role="HUMAN", prompt="Q: {{q}} A:"), dict(role="BOT", prompt="{{gold}}")]),
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=4),
        ),
        eval_cfg=dict(evaluator=dict(type="EMEvaluator")),
    )
]
"""


@dataclass(frozen=True)
class World:
    """``root`` has config/, data/, gpt2/ and chat/; run.py is started there."""

    root: Path

    def environment(self, **more: str) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if key not in ("CUDA_VISIBLE_DEVICES", "PYTHONPATH")}
        return {**clean, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(REPOSITORY / "run.py"), *arguments]

    def run(self, *arguments: str, code: int | None = 0, **more: str) -> subprocess.CompletedProcess[str]:
        """run.py with our configurations; fails the test when it ends with another code."""
        result = subprocess.run(
            self.command("--config-dir", "config", *arguments),
            cwd=self.root,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert code is None or result.returncode == code, result.stdout + result.stderr
        return result

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "data" / f"{name}.jsonl").read_text().splitlines()]


def make_world(root: Path) -> World:
    """Everything but the models."""
    (root / "config" / "datasets").mkdir(parents=True)
    (root / "config" / "models").mkdir()
    (root / "config" / "summarizers").mkdir()
    (root / "data").mkdir()
    (root / "config" / "summarizers" / "example.py").write_text(
        'summarizer = dict(summary_groups=[dict(name="both", subsets=["small", "large"])])\n'
    )
    for name, count, template in (("small", 20, PPL), ("large", 50, PPL), ("written", 10, GEN)):
        (root / "config" / "datasets" / f"{name}.py").write_text(template.format(name=name))
        rows = [
            {"q": f"{i} is the {ANIMALS[i % 5]} on the {ANIMALS[i // 5 % 5]}", "gold": "AB"[i * i % 3 % 2]}
            for i in range(count)
        ]
        (root / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return World(root)


@pytest.fixture(scope="session")
def models_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``gpt2`` and ``chat``, the second with a chat template."""
    directory = tmp_path_factory.mktemp("run-models")
    save_tiny_model(directory / "gpt2", "gpt2", window=256)
    save_tiny_model(directory / "chat", "llama", window=256)
    settings = json.loads((directory / "chat" / "tokenizer_config.json").read_text())
    settings["chat_template"] = (
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    (directory / "chat" / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)
