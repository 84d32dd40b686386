"""What all schedules share: whole saves of tiny models, and the scores that an undisturbed daemon finds for them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.end_to_end import chaos_checks as checks

MODEL, PROJECT = "tiny-gpt2", "tiny"
Run = Callable[
    [list[str], Path], int | None
]  # evaluator.py with arguments, to its end; where its output goes; its code

CONFIG = """
auto_eval:
  project_name: tiny
  model_name: tiny-gpt2
  work_dir: {work_dir}
  {section}
  icl: {{datasets: [{home}/two.py], data_dir: .}}
  wandb: {wandb}
  order: {order}
  model: {{verify: never}}
"""
DATASET = """
two_datasets = [
    dict(
        abbr=name,
        type='JsonlDataset',
        path=r'{directory}/items.jsonl',
        reader_cfg=dict(input_columns=['question', 'A', 'B'], output_column='answer'),
        infer_cfg=dict(
            prompt_template=dict(
                type='PromptTemplate',
                template={{'A': start + '{{question}} {{A}}', 'B': start + '{{question}} {{B}}'}},
            ),
            retriever=dict(type='ZeroRetriever'),
            inferencer=dict(type='PPLInferencer'),
        ),
        eval_cfg=dict(evaluator=dict(type='AccEvaluator')),
    )
    for name, start in (('first', ''), ('second', 'So '))
]
"""


@dataclass(frozen=True)
class World:
    """What all schedules share: whole saves by layout and variant, and the scores of each variant, undisturbed."""

    home: Path
    variants: dict[str, dict[str, Path]]  # layout -> variant -> directory
    reference: dict[str, Any]  # layout/variant -> scores


def make_world(home: Path, run: Run) -> World:
    """Tiny models and their scores. Megatron checkpoints where megatron-core is installed, which writes them."""
    from tests.tiny_models import save_tiny_model, save_tiny_tokenizer

    items = [
        {"question": f"{a} + {b} =", "A": str(a + b), "B": str(a - b), "answer": "AB"[a % 2]}
        for a in range(10, 16)
        for b in (1, 3)
    ]
    (home / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (home / "two.py").write_text(DATASET.format(directory=home))
    save_tiny_tokenizer(home / "tokenizer")
    variants: dict[str, dict[str, Path]] = {"huggingface": {}}
    for seed in range(5):
        variants["huggingface"][f"v{seed}"] = save_tiny_model(home / "models" / f"v{seed}", seed=seed)
    if importlib.util.find_spec("megatron") is not None:
        saves = home / "megatron"
        if not saves.exists():  # whoever asks may have them already
            from tests.end_to_end.conftest import write_megatron_saves

            write_megatron_saves(saves)
        for layout in ("torch_dist", "torch"):
            variants[layout] = {path.name: path for path in sorted((saves / layout).glob("iter_0000[123]00"))}
    world = World(home, variants, {})
    for layout, mine in variants.items():
        world.reference.update(_undisturbed(world, layout, mine, run))
    return world


def _undisturbed(world: World, layout: str, variants: dict[str, Path], run: Run) -> dict[str, Any]:
    """What a daemon that nobody disturbs finds, with each variant as an iteration of its own."""
    directory = world.home / f"reference-{layout}"
    names = {100 * (place + 1): name for place, name in enumerate(sorted(variants))}
    for iteration, name in names.items():
        folder = f"checkpoint-{iteration}" if layout == "huggingface" else f"iter_{iteration:07d}"
        shutil.copytree(variants[name], directory / "checkpoints" / folder)
    (directory / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(max(names)))
    config = CONFIG.format(
        section=section_of(world, layout),
        home=world.home,
        wandb="{mode: disabled}",
        order="oldest-first",
        work_dir="out",
    )
    (directory / "evaluator.yaml").write_text(config)
    arguments = ["--config", str(directory / "evaluator.yaml"), "--once", "--iteration-interval", "100"]
    arguments += ["--model-type", "huggingface" if layout == "huggingface" else "megatron"]
    code = run(arguments, directory / "console")
    assert code == 0, f"it ended with {code}: {(directory / 'console').read_text()[-3000:]}"
    found = {names[i]: scores for (i, _), scores in checks.scores_of(directory / "out").items()}
    assert found.keys() == variants.keys()
    distinct = {json.dumps(sorted((key, one[0]) for key, one in scores.items())) for scores in found.values()}
    assert len(distinct) > 1, "all variants have the same scores: nothing would be shown"
    return {f"{layout}/{name}": scores for name, scores in found.items()}


def section_of(world: World, layout: str) -> str:
    if layout == "huggingface":
        return "huggingface: {checkpoint_path: checkpoints, token_per_iteration: 0.001}"
    tokenizer = f"tokenizer_type: huggingface, tokenizer_path: {world.home}/tokenizer"
    return f"megatron: {{checkpoint_path: checkpoints, {tokenizer}, token_per_iteration: 0.001}}"
