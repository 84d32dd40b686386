"""The training curve in the report, from the file that the daemon's diagnosis writes."""

from __future__ import annotations

import json
from pathlib import Path

from recorder.report.training import training_section


def test_curves_levels_and_evidence(tmp_path: Path) -> None:
    assert training_section(tmp_path) == ""
    content = {
        "model": "<m>",
        "log": "/logs/a.log",
        "axis": "iteration",
        "train": [[i, 11 / i**0.3, 1.0, 11.0] for i in range(1, 200)],
        "validation": {"validation": [[100, 3.2], [200, 3.0]]},
        "diagnosis": {
            "current_risks": {"overfitting": "High", "underfitting": "Low"},
            "evidence": {"overfitting": [{"text": "rose by 5 % & more", "level": "High"}], "underfitting": []},
            "other_risks": {"loss_spikes": {"level": "Medium", "evidence": [{"text": "a spike", "level": "Medium"}]}},
        },
    }
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "training_log.json").write_text(json.dumps(content))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "training_log.json").write_text("{")
    html = training_section(tmp_path)
    assert html.count("<svg") == 1 and html.count("<polyline") == 2 and "&lt;m&gt;" in html
    assert "overfitting: High" in html and "loss spikes: Medium" in html
    assert "<li>rose by 5 % &amp; more</li>" in html and "<li>a spike</li>" in html
