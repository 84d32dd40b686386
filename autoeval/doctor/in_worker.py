"""What only a process with torch can tell, found out in one like the worker's: devices, tokenizer, tasks and data.

python -m autoeval.doctor.in_worker         a request (JSON) on standard input, findings out, a JSON line each
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from autoeval.doctor.finding import Finding, ok, problem, warning
from autoeval.offline.environment import keep_off_the_hub
from recorder.untrusted import PrintableRecord

SAMPLE = "Evaluating 8 checkpoints – of a language model: naïve, 模型.\n"
SMI_SECONDS = 20.0
_INSTALL = "install torch for this machine's driver: setup_scripts/install.sh"


def answer(request: dict[str, Any]) -> Iterator[Finding]:
    """All findings. What one part raises is a problem of that part alone."""
    parts: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("torch", partial(_devices, request["model"], request["devices_here"], request["model_bytes"])),
    ]
    if request["tokenizer"] is not None:
        parts.append(("tokenizer", partial(_tokenizer, request["tokenizer"], request["rows"])))
    elif request["model_directory"] is not None:
        parts.append(("tokenizer", partial(_own_tokenizer, Path(request["model_directory"]))))
    if request["icl"] is not None:
        parts += [("task data", partial(_icl, name, request["icl"])) for name in request["icl"]["datasets"]]
    if request["helm"] is not None:
        parts.append(("HELM's tasks", partial(_helm, request["helm"])))
    for name, part in parts:
        try:
            yield from part()
        except Exception as error:
            yield problem(name, f"{type(error).__name__}: {error}", "a check that comes to its end", "see above")


def _devices(model: dict[str, Any], here: bool, model_bytes: int) -> Iterator[Finding]:
    """``here``: whether models are run on this machine, or on those of a cluster."""
    import torch
    import transformers

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    yield ok("torch", f"torch {torch.__version__} ({built}), transformers {transformers.__version__}")
    seen = nvidia_smi()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not here:
        yield ok("GPUs", f"{len(seen)} on this machine, which are not used: the runner has its own")
        return
    if seen and not count:
        found = f"nvidia-smi sees {len(seen)} ({seen[0]}), torch none: {_why_no_cuda(torch)}"
        yield problem("GPUs", found, "torch to see what nvidia-smi sees", _INSTALL)
    elif not count:
        yield ok("GPUs", "none: models are run on the CPU")
    else:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        told = f"torch sees {count} of {len(seen) or count}" + (f", CUDA_VISIBLE_DEVICES={visible}" if visible else "")
        yield ok("GPUs", f"{told}: {', '.join(torch.cuda.get_device_name(place) for place in range(count))}")
        yield from _gpu_memory(torch, count, model_bytes)
    yield from _requested(model, count)


def _requested(model: dict[str, Any], count: int) -> Iterator[Finding]:
    device, devices, wanted = model["device"], model["devices"], model["num_gpus"]
    kind, _, number = str(device).partition(":")
    if kind == "cuda" and (count == 0 or (number.isdigit() and int(number) >= count)):
        yield problem("model.device", f"{device}, and torch sees {count} GPUs", "a GPU that is here", "auto takes it")
    for key, value in (("model.devices", devices), ("runner.num_gpus", wanted)):
        if isinstance(value, int) and value > max(1, count):
            yield problem(key, f"{value}, and torch sees {count} GPUs", f"at most {max(1, count)}", f"lower {key}")


def _gpu_memory(torch: Any, count: int, model_bytes: int) -> Iterator[Finding]:
    for place in range(count):
        free, total = torch.cuda.mem_get_info(place)
        found = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        if model_bytes and free < model_bytes:
            expected = f"{model_bytes / 1e9:.1f} GB for the weights alone"
            yield warning(
                f"memory of GPU {place}", found, expected, "end what holds it, or give models several devices"
            )
        else:
            yield ok(f"memory of GPU {place}", found)


def _why_no_cuda(torch: Any) -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} was built without CUDA"
    try:
        torch.cuda.init()
    except Exception as error:  # whatever the driver says
        return str(error).splitlines()[0]
    return "the driver shows it none"


def nvidia_smi() -> list[str]:
    """The names of the GPUs that the driver knows; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.split("(")[0].strip() for line in done.stdout.splitlines() if line.startswith("GPU ")]


def _tokenizer(files: dict[str, Any], rows: int | None) -> Iterator[Finding]:
    """Made as a conversion makes it, and tried on a sentence."""
    from autoeval.convert.errors import ConversionError
    from autoeval.convert.tokenizer import TokenizerSource, write_tokenizer

    keys = ("vocab_path", "merge_path", "path")
    source = TokenizerSource(kind=files["kind"], **{key: Path(files[key]) if files[key] else None for key in keys})
    expected = f"the files of a {files['kind']} tokenizer, those that the training used"
    try:
        with tempfile.TemporaryDirectory() as place:
            size = write_tokenizer(source, Path(place), max_length=1024)
            told = _tried(Path(place))
    except ConversionError as error:
        yield problem("tokenizer", str(error), expected, "name the training's own tokenizer files in section megatron")
        return
    if rows is not None and size > rows:
        found = f"{size} tokens, but the newest checkpoint's embedding has {rows} rows"
        yield problem("tokenizer", found, expected, "name the training's own tokenizer files in section megatron")
    else:
        yield ok("tokenizer", f"{files['kind']}, {size} tokens; {told}")


def _own_tokenizer(directory: Path) -> Iterator[Finding]:
    try:
        yield ok("tokenizer", f"of {directory.name}: {_tried(directory)}")
    except Exception as error:
        found = f"{directory}: {type(error).__name__}: {str(error).splitlines()[0]}"
        action = "save the tokenizer beside the model: tokenizer.save_pretrained(directory)"
        yield problem("tokenizer", found, "a tokenizer in each checkpoint", action)


def _tried(directory: Path) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    tokens = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    same = tokenizer.decode(tokens) == SAMPLE
    return f"a sentence is {len(tokens)} tokens" + (" and comes back the same" if same else "")


def _icl(name: str, plan: dict[str, Any]) -> Iterator[Finding]:
    """Each dataset that ``name`` stands for by itself, so that all that is missing is told."""
    from autoeval.openicl.evaluators import check_code_execution
    from autoeval.openicl.sandbox import isolation_problem
    from autoeval.tasks.configs import find_config, read_configs
    from autoeval.tasks.icl import load_icl_task

    shown = Path(name).name
    try:
        configs = read_configs(find_config(name, None))
    except ValueError as error:
        yield problem(f"task {shown}", str(error), "a dataset configuration", "correct icl.datasets")
        return
    items: dict[str, int] = {}
    for config in configs:
        try:
            check_code_execution(config.options["eval_cfg"], config.abbr, plan["allow_code_execution"], "icl.allow_code_execution: true")  # fmt: skip
            task = load_icl_task(config, data_dir=Path(plan["data_dir"]), limit=plan["limit"])
            items[config.abbr] = len(task.samples)
        except ValueError as error:
            expected = f"the dataset's files below {plan['data_dir']}"
            yield problem(f"task {config.abbr}", str(error), expected, "put the data there, or correct icl.data_dir")
            continue
        runs_code = _refuses_code(config.options["eval_cfg"], config.abbr, check_code_execution)
        if runs_code and (why := isolation_problem()) is not None:
            yield problem(f"task {config.abbr}", why, "isolation for what the model writes", "see docs/security.md")
    if items:
        names = ", ".join(list(items)[:3]) + (", …" if len(items) > 3 else "")
        yield ok(
            f"task {shown}", f"{len(items)} task{'s' if len(items) > 1 else ''}, {sum(items.values())} items: {names}"
        )


def _refuses_code(eval_cfg: Any, name: str, check: Callable[..., None]) -> bool:
    try:
        check(eval_cfg, name, False, "")
    except ValueError:
        return True
    return False


def _helm(plan: dict[str, Any]) -> Iterator[Finding]:
    from autoeval.helm.data_files import examine_data
    from autoeval.tasks.plan import task_plan_from_json
    from autoeval.tasks.work import load_planned_helm_tasks

    helm = task_plan_from_json({"icl": None, "helm": plan}).helm
    assert helm is not None
    try:
        tasks = load_planned_helm_tasks(helm)
    except ValueError as error:
        yield problem("HELM's tasks", str(error), "HELM run entries", "correct the file or helm.benchmarks")
        return
    yield ok("HELM's tasks", f"{len(tasks)}: {', '.join(task.name for task in tasks[:8])}")
    try:
        yield ok("HELM's data files", examine_data(tasks, Path(helm.output_path)))
    except ValueError as error:
        action = "python -m autoeval.helm.stage lays out what was downloaded elsewhere (docs/helm.md)"
        yield problem(
            "HELM's data files", str(error), "every file on this machine: nothing is fetched in a run", action
        )


def main() -> int:
    from autoeval.tasks.worker import take_standard_output

    out = take_standard_output()
    logging.setLogRecordFactory(PrintableRecord)
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    keep_off_the_hub()
    for finding in answer(json.load(sys.stdin)):
        out.write(json.dumps(asdict(finding)) + "\n")
        out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
