"""Post-processors: from what a model wrote to what is compared. OpenCompass's names."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from typing import Any

from autoeval.datasets.names import look_up

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def general(text: str) -> str:
    """Lower case, up to the first line break, full stop or comma, without punctuation, articles and spare spaces."""
    head = re.split(r"[\n.,]", text, maxsplit=1)[0]
    kept = "".join(character for character in head if character not in string.punctuation)
    kept = re.sub(r"\b(a|an|the)\b", " ", kept, flags=re.IGNORECASE)
    return " ".join(kept.split()).lower()


def first_capital(text: str) -> str:
    """The first upper-case letter, or nothing."""
    return next((character for character in text if character.isupper()), "")


def first_capital_multi(text: str) -> str:
    """The first run of letters A to D, or nothing."""
    found = re.search(r"[A-D]+", text)
    return found[0] if found else ""


def first_number(text: str) -> str:
    """The first number, without thousands separators, or nothing."""
    found = _NUMBER.search(text)
    return _plain(found[0]) if found else ""


def last_number(text: str) -> str:
    """The last number before a next question begins, as GSM8K's answers are read; or nothing."""
    found = _NUMBER.findall(text.split("Question:", 1)[0])
    return _plain(found[-1]) if found else ""


def lambada(text: str) -> str:
    """The first word, without the punctuation after it."""
    word = text.strip().split(maxsplit=1)[:1]
    return re.split(r"[^\w'-]", word[0], maxsplit=1)[0] if word else ""


def gsm8k_answer(text: str) -> str:
    """What follows ``####`` in a GSM8K solution."""
    return _plain(text.rsplit("####", 1)[-1].strip())


def first_line(text: str) -> str:
    """The first line that is not empty, without spaces around it."""
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def _plain(number: str) -> str:
    """``1,200.00`` and ``1200`` are one number."""
    number = number.replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


POSTPROCESSORS: dict[str, Callable[[str], str]] = {
    "general": general,
    "first-capital": first_capital,
    "first-capital-multi": first_capital_multi,
    "first_number": first_number,
    "last_number": last_number,
    "gsm8k": last_number,
    "gsm8k_dataset": gsm8k_answer,
    "lambada": lambada,
    "first-line": first_line,
    "strip": str.strip,
}


def build_postprocessor(options: Mapping[str, Any] | None) -> Callable[[str], str]:
    """From ``dict(type="first-capital")``; none leaves the text as it is."""
    if options is None:
        return str
    extra = set(options) - {"type"}
    if extra:
        raise ValueError(f"postprocessor {options.get('type')}: unknown key {min(extra)!r}")
    return look_up(POSTPROCESSORS, options.get("type", ""), "postprocessor")
