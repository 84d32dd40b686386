"""``DLCRunner``: the tasks of a stage as jobs of Alibaba Cloud's PAI-DLC, with OpenCompass's ``aliyun_cfg``."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoeval.runners.cluster import ClusterRunner
from autoeval.runners.dlc import Dlc, DlcCommand, DlcOptions, DlcSdk, Transport
from autoeval.runners.jobs import Resources

_OPTIONS = frozenset(DlcOptions.__dataclass_fields__)
# For the dlc command; for the SDK.
_COMMAND, _SDK = frozenset({"dlc_config_path", "dlc_program"}), frozenset({"region", "endpoint", "protocol"})


def dlc_runner(
    aliyun_cfg: Mapping[str, Any] | str,
    minutes: int | None = None,
    num_cpus: int | None = None,
    memory_gb: float | None = None,
    max_num_workers: int = 1,
    retry: int = 0,
    debug: bool = False,
    environment: Mapping[str, str] | None = None,
) -> ClusterRunner:
    """``dlc_queue`` with so many jobs at once. Raises ``ValueError`` naming what is wrong."""
    del debug  # what a container prints is for the service to show
    return ClusterRunner(
        dlc_queue(aliyun_cfg),
        max_num_workers=max_num_workers,
        retry=retry,
        resources=Resources(0, num_cpus, memory_gb, minutes),
        environment=environment,
    )


def dlc_queue(aliyun_cfg: Mapping[str, Any] | str) -> Dlc:
    """``aliyun_cfg`` or the file that has it. With ``dlc_config_path`` the ``dlc`` command is used, without it the SDK.
    Raises ``ValueError`` naming what is wrong."""
    where = "aliyun_cfg"
    if isinstance(aliyun_cfg, str):
        where = aliyun_cfg
        aliyun_cfg = read_aliyun_cfg(Path(aliyun_cfg).expanduser())
    for key in sorted(set(aliyun_cfg) - _OPTIONS - _COMMAND - _SDK):
        known = ", ".join(sorted(_OPTIONS | _COMMAND | _SDK))
        raise ValueError(f"{where}: unknown key '{key}' (known: {known})")
    for key in ("workspace_id", "worker_image"):
        if not aliyun_cfg.get(key):
            raise ValueError(f"{where}: it lacks {key}")
    options = {key: value for key, value in aliyun_cfg.items() if key in _OPTIONS and value is not None}
    sources = options.get("data_sources", ())
    options["data_sources"] = tuple(sources.split(",")) if isinstance(sources, str) else tuple(sources)
    options["workspace_id"] = str(options["workspace_id"])
    transport: Transport
    if aliyun_cfg.get("dlc_config_path") or aliyun_cfg.get("dlc_program"):
        path = aliyun_cfg.get("dlc_config_path")
        transport = DlcCommand(str(Path(path).expanduser()) if path else None, aliyun_cfg.get("dlc_program", "dlc"))
    else:
        transport = DlcSdk(**{key: aliyun_cfg[key] for key in _SDK if aliyun_cfg.get(key)})
    return Dlc(DlcOptions(**options), transport)


def read_aliyun_cfg(path: Path) -> dict[str, Any]:
    """A mapping in YAML or JSON, or lines ``key = 'value'`` as in OpenCompass's; nothing is executed. Raises
    ``ValueError`` naming the file."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}; expected the DLC settings (--aliyun-cfg)") from error
    if re.match(r"\s*(#.*\n\s*)*\w+\s*=", text):
        return _assignments(path, text)
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys such as workspace_id and worker_image")
    return content


def _assignments(path: Path, text: str) -> dict[str, Any]:
    content: dict[str, Any] = {}
    try:
        for node in ast.parse(text).body:
            if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
                raise ValueError(f"line {node.lineno}: expected key = 'value'")
            content[node.targets[0].id] = ast.literal_eval(node.value)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return content
