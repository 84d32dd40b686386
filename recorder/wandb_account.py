"""Who the W&B server takes us for, asked through the client: ``python -m recorder.wandb_account`` in a process of its own.

On standard input ``{"project", "entity", "base_url", "work_dir"}``, on standard output one JSON line: ``{"user", "entity",
"teams"}``, or ``{"error", "trouble"}``. The key is shown nowhere: it is cut out of what the client says.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from recorder.wandb_client import Client, WandbSettings, trouble


def account(settings: WandbSettings, work_dir: Path) -> dict[str, Any]:
    """Ask the server. Raises what the client raises."""
    api = Client(settings, work_dir).api()
    viewer = api.viewer
    entity = settings.entity or api.default_entity
    return {"user": viewer.username, "entity": entity, "teams": list(viewer.teams)}


def without_key(text: str) -> str:
    """``text`` with the key, should the client have put it there, cut out."""
    key = os.environ.get("WANDB_API_KEY")
    return text.replace(key, "***") if key else text


def main() -> int:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the client talks
    asked = json.load(sys.stdin)
    settings = WandbSettings("online", asked["project"], asked["entity"], asked["base_url"])
    with tempfile.TemporaryDirectory() as place:
        try:
            answer = account(settings, Path(place))
        except Exception as error:
            answer = {"error": without_key(" ".join(str(error).split())), "trouble": trouble(error)}
    out.write(json.dumps(answer) + "\n")
    out.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
