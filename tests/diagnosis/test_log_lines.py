from __future__ import annotations

import math
from pathlib import Path

import pytest

from autoeval.diagnosis.formats.megatron import validations
from autoeval.diagnosis.log_lines import validation_loss_at


def test_megatrons_lines_are_understood_whatever_stands_before_them() -> None:
    lines = [
        " validation loss at iteration 100 | lm loss value: 8.017406E+00 | lm loss PPL: 3.033300E+03 | ",
        "[default7]: validation loss at iteration 200 on validation set | lm loss value: 7.5E+00 | lm loss PPL: 1.8E+03",
        "validation loss at iteration 300 on test set | lm loss value: 1.0E+00 | lm loss PPL: 2.7E+00 |",
        " iteration      300/ 1000 | lm loss: 6.9E+00 | loss scale: 1.0 |",
        "validation loss at iteration 400 | lm loss value: nan | lm loss PPL: nan |",
        "validation loss at iteration 500 | lm loss val",
        "validation loss at iteration 600 | lm loss value: 1.2E+ ",
    ]
    found = validations("\n".join(lines).encode())
    assert [one[:2] for one in found] == [(100, ""), (200, ""), (400, "")]
    assert [one.loss for one in found[:2]] == [8.017406, 7.5] and math.isnan(found[2].loss)


def test_after_a_rollback_the_later_line_counts(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    line = "validation loss at iteration 100 | lm loss value: {}E+00 | lm loss PPL: 1E+00 |\n"
    log.write_bytes((line.format(8) + line.format(7)).encode() + b"\xff\n")
    assert validation_loss_at(log, 100) == 7.0
    assert validation_loss_at(log, 200) is None
    with pytest.raises(FileNotFoundError):
        validation_loss_at(tmp_path / "nowhere.log", 100)
