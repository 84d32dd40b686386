"""--doctor asks W&B who we are, through the real client; the server is the recorder's imitation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoeval.config import load_config
from autoeval.doctor import accounts
from autoeval.doctor.finding import Finding, as_lines

sys.path.append(str(Path(__file__).resolve().parents[1] / "recorder"))
from wandb_answers import KEY
from wandb_server import Imitation

pytestmark = pytest.mark.slow

CONFIG = """
auto_eval:
  project_name: demo
  model_name: tiny
  work_dir: out
  huggingface: {{checkpoint_path: checkpoints}}
  icl: {{datasets: [hellaswag_ppl]}}
  wandb: {{mode: online, base_url: '{url}', entity: {entity}}}
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Imitation]:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with Imitation() as imitation:
        yield imitation


def ask(tmp_path: Path, url: str, entity: str = "null") -> Finding:
    (tmp_path / "evaluator.yaml").write_text(CONFIG.format(url=url, entity=entity))
    (found,) = accounts.examine_wandb(load_config(tmp_path / "evaluator.yaml")[0])
    assert KEY not in as_lines(found)
    return found


def test_a_key_that_is_taken_and_an_entity_that_is_not_ours(server: Imitation, tmp_path: Path) -> None:
    found = ask(tmp_path, server.url)
    assert found.level == "ok" and "knows user (key from WANDB_API_KEY)" in found.found
    other = ask(tmp_path, server.url, "somebody-else")
    assert other.level == "problem" and "who is not in somebody-else" in other.found
    assert not server.backend.runs  # nothing was written


def test_a_key_that_is_refused_and_a_server_that_is_away(
    server: Imitation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "0" * 40
    monkeypatch.setenv("WANDB_API_KEY", wrong)
    refused = ask(tmp_path, server.url)
    assert refused.level == "problem" and wrong not in as_lines(refused) and "WANDB_API_KEY" in refused.action
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    server.stop()
    monkeypatch.setattr(accounts, "WANDB_SECONDS", 10.0)
    away = ask(tmp_path, server.url)
    assert away.level == "warning" and "kept and sent later" in away.action
