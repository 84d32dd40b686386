"""``--doctor``: find out before the run what would stop it in the middle."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import netrc
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from urllib.parse import urlparse

from autoeval.config import AutoEval
from autoeval.planning import WatchOptions, make_watcher, task_plan
from autoeval.runners.worker_process import ask_tasks
from autoeval.tasks.plan import HelmPlan
from autoeval.tasks.work import load_planned_helm_tasks
from recorder.messages.channel import Channel

PACKAGES = ("torch", "transformers", "safetensors", "wandb", "watchdog", "apscheduler", "plotly", "pandas")


def examine(configs: Sequence[AutoEval], watch: WatchOptions) -> int:
    """Print one line a check; 1 when anything is missing. Nothing is evaluated, nothing is sent."""
    problems = 0
    for config in configs:
        print(f"{config.model_name}:")
        for name, check in checks(config, watch):
            try:
                found = check()
            except (OSError, ValueError, importlib.metadata.PackageNotFoundError) as error:
                problems += 1
                print(f"  MISSING  {name}: {error}")
            else:
                print(f"  ok       {name}: {found}")
    print("everything is there" if not problems else f"{problems} things are missing")
    return 1 if problems else 0


def checks(config: AutoEval, watch: WatchOptions) -> list[tuple[str, Callable[[], str]]]:
    """(what, how) of each check; ``how`` returns what it found or raises with what is missing."""
    listed: list[tuple[str, Callable[[], str]]] = []
    packages = [*PACKAGES, *(["crfm-helm"] if config.helm is not None else [])]
    for package in packages:
        listed.append((f"package {package}", partial(importlib.metadata.version, package)))
    listed.append(("work_dir", partial(_writable, config.work_dir)))
    listed.append(("checkpoint_path", partial(_checkpoints, config, watch)))
    if config.megatron is not None:
        for key in ("vocab_path", "merge_path", "tokenizer_path"):
            path = getattr(config.megatron, key)
            if path is not None:
                listed.append((f"megatron.{key}", partial(_readable, path)))
        if config.megatron.validation_text is not None:
            listed.append(("megatron.validation_text", partial(_readable, config.megatron.validation_text)))
        listed.append(("model.verify", partial(_verification, config.model.verify)))
    if config.baselines is not None:
        listed.append(("baselines", partial(_baselines, config.baselines)))
    listed.append(("tasks, their data, and the local runner", partial(_tasks, config, watch)))
    if (helm := task_plan(config, watch.eval_type).helm) is not None:
        listed.append(("HELM's data files", partial(_helm_data, helm)))
    listed.append(("wandb", partial(_wandb, config)))
    listed += [(f"messages to {channel.name}", partial(_messages, channel)) for channel in config.channels]
    return listed


def _writable(directory: Path) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass
    free = shutil.disk_usage(directory).free
    return f"{directory} can be written, {free / 2**30:.1f} GiB free"


def _readable(path: Path) -> str:
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} cannot be read")
    return str(path)


def _checkpoints(config: AutoEval, watch: WatchOptions) -> str:
    watcher = make_watcher(config, watch)
    if not watcher.checkpoint_path.exists():
        return f"{watcher.checkpoint_path} does not exist yet; it will be waited for"
    found = watcher.scan()
    linked = watcher.checkpoint_path.stat().st_dev == config.work_dir.stat().st_dev
    pins = (
        "pinned by hard links" if linked else "on another file system than work_dir: deleted before its turn is missed"
    )
    counts = f"{len(found.complete)} complete and due, {len(found.waiting)} not complete"
    return f"{watcher.checkpoint_path}: {counts}; {pins}"


def _verification(mode: str) -> str:
    installed = importlib.util.find_spec("megatron") is not None
    if mode == "always" and not installed:
        raise ValueError("'always' needs megatron-core, which is not installed")
    if mode != "never" and not installed:
        return f"'{mode}', but megatron-core is not installed: conversions are not compared with it"
    return mode


def _baselines(path: Path) -> str:
    from recorder.baselines import load_baselines

    return f"{len(load_baselines(path))} models in {path}"


def _tasks(config: AutoEval, watch: WatchOptions) -> str:
    return ", ".join(name for name, _ in ask_tasks(asdict(task_plan(config, watch.eval_type))))


def _helm_data(plan: HelmPlan) -> str:
    from autoeval.helm.data_files import examine_data

    return examine_data(load_planned_helm_tasks(plan), Path(plan.output_path))


def _messages(channel: Channel) -> str:
    """Whether the host of the webhook has an address here. Nothing is sent: a group is no place for tests."""
    try:
        socket.getaddrinfo(channel.host, None)
    except OSError as error:
        raise ValueError(f"the name {channel.host} is not known on this machine: {error.strerror}") from error
    signed = ", signed" if channel.secret else ""
    return f"{channel.host}{signed} (nothing was sent; the rest of the address is not shown)"


def _wandb(config: AutoEval) -> str:
    """Whether a key is to be had where the wandb client looks for one (its value is never read out)."""
    mode = config.wandb.mode
    if mode != "online":
        return f"mode {mode}: nothing is sent"
    if os.environ.get("WANDB_API_KEY"):
        return "mode online, key from WANDB_API_KEY"
    address = config.wandb.base_url or os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    host = urlparse(address).hostname or address
    try:
        known = netrc.netrc().authenticators(host)
    except (FileNotFoundError, netrc.NetrcParseError):
        known = None
    if known is None:
        raise ValueError(f"no key for {host}: set WANDB_API_KEY or run 'wandb login'")
    return f"mode online, key for {host} from ~/.netrc"
