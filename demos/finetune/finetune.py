#!/usr/bin/env python3
"""Fine-tunes a chat model on conversations: LoRA or all weights. chat_main.sh calls it; README.md has the parameters.

It leaves ``checkpoint-N`` directories that ``evaluator.py --model-type huggingface`` watches, and ``log.txt`` (what
the Trainer prints) that ``eval/diagnosis_monitoring.py`` reads. Started again it goes on from the last checkpoint.
Exit status: 0 done, 2 wrong arguments or data, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
sys.path.insert(0, str(HERE))

from chat_formats import MODES, choose_format  # noqa: E402 - beside this file
from conversations import IGNORED, Padding, encode, read_conversations  # noqa: E402

SETTINGS = "finetune.json"  # beside the checkpoints: what they were made with
_MAY_CHANGE = {"output_path", "deepspeed", "num_train_epochs", "max_steps", "save_total_limit", "logging_steps"}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_name_or_path", type=Path, required=True, help="a Hugging Face model directory")
    add("--data_path", type=Path, required=True, help="directory with train.jsonl and, to be evaluated on, test.jsonl")
    add("--output_path", type=Path, required=True)
    add("--scenario", choices=("general", "faq"), default="general")
    add(
        "--mode",
        choices=MODES,
        default="auto",
        help="how conversations are written; auto: the tokenizer's own template",
    )
    add("--train_type", choices=("lora", "all"), default="lora")
    add("--lora_module_name", default="gate_proj,down_proj,up_proj", help="names of linear layers, with commas")
    add("--lora_dim", type=int, default=16)
    add("--lora_alpha", type=int, default=32)
    add("--lora_dropout", type=float, default=0.05)
    add("--learning_rate", type=float, default=1e-4)
    add("--weight_decay", type=float, default=0.0)
    add("--warmup_steps", type=float, default=0.03, help="steps, or (below 1) a share of them")
    add("--lr_scheduler_type", default="cosine")
    add("--num_train_epochs", type=float, default=3.0)
    add("--max_steps", type=int, default=-1)
    add("--per_device_train_batch_size", type=int, default=4)
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--max_seq_len", type=int, default=1024)
    add("--save_steps", type=int, default=100)
    add("--save_total_limit", type=int, default=None, help="older checkpoints are deleted (default: none is)")
    add("--logging_steps", type=int, default=10)
    add("--seed", type=int, default=42)
    add("--gradient_checkpointing", action="store_true", help="less memory, a third more work")
    add("--deepspeed", type=Path, default=None, help="a DeepSpeed configuration (GPUs only)")
    add("--trust_remote_code", action="store_true", help="run the code that comes with the model: ChatGLM, Baichuan")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        train(options)
    except (ValueError, OSError) as error:
        print(f"finetune.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("finetune.py: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def train(options: argparse.Namespace) -> None:
    """Everything; raises ``ValueError`` and ``OSError`` naming the file, line or flag that is wrong."""
    if not (options.model_name_or_path / "config.json").is_file():
        raise FileNotFoundError(f"--model_name_or_path {options.model_name_or_path}: there is no config.json in it")
    splits = {name: options.data_path / f"{name}.jsonl" for name in ("train", "test")}
    conversations = {
        name: read_conversations(file, options.scenario)
        for name, file in splits.items()
        if name == "train" or file.exists()
    }
    begun = _begun(options)
    from transformers import AutoTokenizer, set_seed

    set_seed(options.seed)
    # Absolute: an adapter's configuration names its base, and is read elsewhere.
    source = options.model_name_or_path.resolve()
    tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=options.trust_remote_code)
    chosen = choose_format(tokenizer, options.mode)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    samples = {
        name: encoded(tokenizer, found, chosen.tokens, options.max_seq_len, splits[name])
        for name, found in conversations.items()
    }
    model = _model(source, options)
    if chosen.ends is not None:
        model.generation_config.eos_token_id = sorted(
            {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(chosen.ends)}
        )
    trainer = _trainer(model, tokenizer, samples, options)  # refuses what it does not know before anything is written
    _remember(options)
    trainer.train(resume_from_checkpoint=None if begun is None else str(begun))
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(options.output_path / "trainer_state.json"))


def encoded(
    tokenizer: Any, conversations: list[Any], specials: tuple[str, ...], longest: int, file: Path
) -> list[dict[str, list[int]]]:
    """Samples in which something is left to learn. Raises ``ValueError`` when there is none."""
    made = [encode(tokenizer, messages, specials, longest) for messages in conversations]
    kept = [sample for sample in made if any(label != IGNORED for label in sample["labels"])]
    if not kept:
        raise ValueError(f"{file}: no answer begins within --max_seq_len {longest}")
    if len(kept) < len(made):
        lost = len(made) - len(kept)
        print(f"{file}: {lost} of {len(made)} are left out: no answer within --max_seq_len {longest}", file=sys.stderr)
    return kept


def _model(source: Path, options: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if torch.cuda.is_available() and options.train_type == "lora" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=options.trust_remote_code)
    if options.gradient_checkpointing:
        model.config.use_cache = False
    if options.train_type == "all":
        return model
    from peft import LoraConfig, get_peft_model

    names = [name.strip() for name in options.lora_module_name.split(",") if name.strip()]
    there = sorted({name.rpartition(".")[2] for name, one in model.named_modules() if hasattr(one, "weight")})
    for name in names:
        if not any(module == name or module.endswith(f".{name}") for module, _ in model.named_modules()):
            raise ValueError(f"--lora_module_name: the model has no '{name}' (it has: {', '.join(there)})")
    if options.gradient_checkpointing:
        model.enable_input_require_grads()
    lora = LoraConfig(
        r=options.lora_dim,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, lora)
    adapted.print_trainable_parameters()
    return adapted


def _trainer(model: Any, tokenizer: Any, samples: dict[str, Any], options: argparse.Namespace) -> Any:
    import torch
    from log_file import LogFile
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(options.output_path),
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup_steps,
        lr_scheduler_type=options.lr_scheduler_type,
        num_train_epochs=options.num_train_epochs,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.per_device_train_batch_size,
        per_device_eval_batch_size=options.per_device_train_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        **({"gradient_checkpointing": True} if options.gradient_checkpointing else {}),
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=options.save_total_limit,
        eval_strategy="steps" if "test" in samples else "no",
        eval_steps=options.save_steps,
        logging_steps=options.logging_steps,
        logging_first_step=True,
        seed=options.seed,
        bf16=gpu and torch.cuda.is_bf16_supported(),
        use_cpu=not gpu,
        deepspeed=None if options.deepspeed is None else str(options.deepspeed),
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=samples["train"],
        eval_dataset=samples.get("test"),
        data_collator=Padding(tokenizer.pad_token_id),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LogFile(options.output_path / "log.txt"))
    return trainer


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}


def _begun(options: argparse.Namespace) -> Path | None:
    """The last whole checkpoint of the same run in ``output_path``. Raises ``ValueError`` when another run's are there."""
    found = sorted(
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in options.output_path.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdecimal() and (path / "trainer_state.json").is_file()
    )
    if not found:
        return None
    file, now = options.output_path / SETTINGS, _settings(options)
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{options.output_path}: has checkpoints, but {SETTINGS} cannot be read ({error})") from error
    for key, value in now.items():
        if key not in _MAY_CHANGE and before.get(key) != value:
            raise ValueError(
                f"{options.output_path}: has checkpoints of another run (--{key} was {before.get(key)!r}, now {value!r}); "
                "give another --output_path"
            )
    return found[-1][1]


def _remember(options: argparse.Namespace) -> None:
    from recorder.files import write_json

    if int(os.environ.get("RANK", "0")) == 0:
        write_json(options.output_path / SETTINGS, _settings(options))


if __name__ == "__main__":
    sys.exit(main())
