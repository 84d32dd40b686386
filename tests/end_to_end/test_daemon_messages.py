"""The daemon tells a group: with the address in the environment alone, and once each."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.daemon_world import CONFIG, deliver, run
from tests.recorder.lark_imitation import SECRET, TOKEN, Bot, running

pytestmark = pytest.mark.slow

SECTION = "  lark: {webhook: '${LARK_WEBHOOK}', secret: '${LARK_SECRET}'}\n"


def once(project: Path, bot: Bot) -> subprocess.CompletedProcess[str]:
    return run(project, "--once", "--debug", environment={"LARK_WEBHOOK": bot.url, "LARK_SECRET": SECRET})


def test_a_group_hears_of_each_checkpoint_once(models: Path, project: Path) -> None:
    (project / "evaluator.yaml").write_text(CONFIG.replace("offline", "disabled") + SECTION)
    with running(Bot(secret=SECRET)) as bot:
        deliver(models, project, 100)
        ended = [once(project, bot)]
        deliver(models, project, 200)
        ended += [once(project, bot), once(project, bot)]
    assert [one.returncode for one in ended] == [0, 0, 0], ended[0].stderr[-2000:]
    titles = [message["card"]["header"]["title"]["content"] for message in bot.taken]
    assert titles[:3] == [
        "tiny-gpt2: evaluation started",
        "tiny-gpt2, iteration 100: first scores",
        "tiny-gpt2: evaluation finished",
    ]
    assert titles[3].startswith("tiny-gpt2, iteration 200: ")
    assert titles[4:] == ["tiny-gpt2: evaluation finished"]  # of iteration 200; the third start had nothing to tell
    shown = "".join(one.stdout + one.stderr for one in ended).encode()
    shown += b"".join(path.read_bytes() for path in (project / "out").rglob("*") if path.is_file())
    assert TOKEN.encode() not in shown and SECRET.encode() not in shown
