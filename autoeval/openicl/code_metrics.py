"""Code that is judged by running it: HumanEval's pass@k."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from autoeval.openicl.metric import Metric, mean_metric
from autoeval.openicl.sandbox import Limits, run_isolated

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
# Where a completion of a function is over (arXiv 2107.03374).
_END = re.compile(r"\n(?=(?:class |def |#|if |print\b|@|assert |from |import )|\Z)")


class HumanEvalEvaluator:
    """``pass@k`` for each of ``k`` that there are samples for: the unbiased estimate 1 - C(n - c, k) / C(n, k).

    Rows have ``prompt``, ``entry_point`` and ``test``. What a model wrote is run, in ``autoeval.openicl.sandbox`` and
    only when that is allowed; otherwise ``score`` raises ``ValueError`` before anything is run.
    """

    wants = "rows"

    def __init__(
        self, k: Sequence[int] = (1, 10, 100), seconds: float = 15.0, *, allow_code_execution: bool = False
    ) -> None:
        self.k, self.limits, self.allowed = tuple(k), Limits(seconds=seconds), allow_code_execution

    def score(self, predictions: Sequence[Sequence[str]], rows: Sequence[Any]) -> list[Metric]:
        if not self.allowed:
            raise ValueError(
                "scoring this dataset runs code that the model wrote: allow it with --allow-code-execution"
            )
        programs = [
            program_of(row["prompt"], text, row["entry_point"]) + f"\n{row['test']}\ncheck({row['entry_point']})\n"
            for texts, row in zip(predictions, rows, strict=True)
            for text in texts
        ]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            passed = iter(list(pool.map(lambda program: run_isolated(program, self.limits).finished, programs)))
        right = [[next(passed) for _ in texts] for texts in predictions]
        fewest = min(map(len, right))
        return [
            mean_metric(f"pass@{k}", [pass_at_k(len(item), sum(item), k) for item in right])
            for k in self.k
            if k <= fewest
        ]


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that one of ``k`` drawn from ``samples`` is right when ``right`` of them are."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def program_of(prompt: str, text: str, entry_point: str) -> str:
    """The prompt's function as the model completed it, or wrote it anew (in a fenced block, or from ``def`` on)."""
    fenced = _FENCE.search(text)
    code = fenced[1] if fenced else text
    if re.search(rf"^def\s+{re.escape(entry_point)}\b", code, re.MULTILINE):
        return prompt.split("\ndef ", 1)[0].rstrip() + "\n\n" + code.lstrip("\n")
    body = _END.split(code, maxsplit=1)[0] if not fenced else code
    lines = body.split("\n")
    first = next((line for line in lines if line.strip()), "")
    if first and not first[0].isspace():
        # A chat model may leave out the indentation of the body, or of its first line only.
        rest = next((line for line in lines[lines.index(first) + 1 :] if line.strip()), "")
        place = lines.index(first)
        only_first = rest.startswith("    ") and not first.rstrip().endswith(":")
        lines = [
            "    " + line if line.strip() and (number == place or not only_first) else line
            for number, line in enumerate(lines)
        ]
    return prompt + "\n".join(lines)
