"""Post-processors: from what a model wrote to what is compared. OpenCompass's names.

Names are compared without ``_postprocess`` at their end and with ``_`` for ``-``. Some take options:
``dict(type="first-option", options="ABCD")``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autoeval.datasets.names import class_name, look_up
from autoeval.openicl.chinese import jieba

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def general(text: str) -> str:
    """Up to the first line break, full stop or comma, without punctuation, articles and spare spaces."""
    head = re.split(r"[\n.,]", text, maxsplit=1)[0]
    kept = re.sub(r"\b(a|an|the)\b", " ", re.sub(r"[^\w\s]", "", head), flags=re.IGNORECASE)
    return " ".join(kept.split())


def general_cn(text: str) -> str:
    """The same for Chinese (with its full stop and comma too), cut into words by jieba."""
    head = re.split(r"[\n.,。，]", text, maxsplit=1)[0]
    return " ".join(jieba().cut(general(head)))


def first_capital(text: str) -> str:
    """The first upper-case letter, or nothing."""
    return next((character for character in text if character.isupper()), "")


def last_capital(text: str) -> str:
    """The last upper-case letter, or nothing."""
    return first_capital(text[::-1])


def first_capital_multi(text: str) -> str:
    """The first run of letters A to D, or nothing."""
    found = re.search(r"[A-D]+", text)
    return found[0] if found else ""


def multiple_select(text: str) -> str:
    """All upper-case letters, each once, in order."""
    return "".join(sorted({character for character in text if character.isupper()}))


def first_option(text: str, options: str, cushion: bool = True) -> str:
    """The letter of ``options`` that a sentence of a known kind states ("the answer is B", "答案选B", "故选B" ...).

    The kinds are tried in order, from the plainest statement to a letter that stands alone; with ``cushion`` the first
    letter anywhere is the last resort.
    """
    text = text.strip()
    for pattern in _patterns(options) + (_cushions(options) if cushion else ()):
        found = pattern.search(text)
        if found:
            return found["option"]
    return ""


def last_option(text: str, options: str) -> str:
    """The last letter of ``options`` in the text, or nothing."""
    found = re.findall(f"[{re.escape(options)}]", text)
    return found[-1] if found else ""


@functools.cache
def _patterns(options: str) -> tuple[re.Pattern[str], ...]:
    one = rf"\(?\**(?P<option>[{re.escape(options)}])(?![A-Za-z])"
    end = r"\**\)?[\s。，,．.：:]*$"
    sources = (
        rf"答案(?:选项)?(?:应该?)?[是为选]?\s*[：:]?\s*{one}",
        rf"(?:故|所以|因此)?选择?项?[：:]?\s*{one}",
        rf"只有选?项?\s?{one}\s?(?:是?对|是?错|不?正确|错误)",
        rf"说法(?:不?对|不?正确|错误)选?项?的?是\s?{one}",
        rf"{one}\**\)?\s?是正确(?:的|答案)",
        rf"选项\s?{one}\**\)?\s?正确",
        rf"(?:所以答?|所有|因此|显然|[故即])\s?{one}{end}",
        rf"[是为。]\s?{one}{end}",
        rf"(?i:answer)\s*[：:]\s*{one}",
        r"(?i:the\s+(?:correct\s+)?(?:answer|option)(?:\s+option)?(?:\s+to\s+the\s+question)?\s+is)"
        rf"(?:\s+option)?\s*[：:]?\s*(?:\$?\\boxed\{{)?{one}",
        rf"\\boxed\{{(?:\\text\{{)?{one}",
        rf"^选项\s?{one}",
        rf"^{one}\**\)?\s?选?项",
        rf"[\s，：:,]{one}{end}",
        rf"(?:\s|^){one}\**\)?(?=[\s。，,：:.)]|$)",
    )
    return tuple(re.compile(source, re.DOTALL) for source in sources)


@functools.cache
def _cushions(options: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(rf"(?P<option>[{re.escape(options)}]){after}") for after in (":", ""))


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


def cmrc(text: str) -> str:
    """What follows the statement of an answer, or the whole first line."""
    after = re.split(r"(?:答案|答)[是为：:]+", text, maxsplit=1)[-1]
    return first_line(after)


def bbh_choice(text: str) -> str:
    """The letter of a BIG-Bench Hard answer: what follows "answer is", in brackets or not."""
    said = text.split("answer is", 1)[-1].strip()
    found = re.search(r"\(([A-Z])\)|\b([A-Z])\b", said)
    return (found[1] or found[2]) if found else ""


def bbh_free(text: str) -> str:
    """What follows "answer is" on its line, without the full stop."""
    said = text.split("answer is", 1)[-1].strip().split("\n", 1)[0]
    return said.strip().removesuffix(".").strip()


def without_thinking(text: str, think_start_token: str = "<think>", think_end_token: str = "</think>") -> str:
    """The text without what a model thought aloud between the two tokens."""
    if think_start_token not in text:
        return text.split(think_end_token)[-1].strip()
    return re.sub(f"{re.escape(think_start_token)}.*?{re.escape(think_end_token)}", "", text, flags=re.DOTALL).strip()


def match_answer_pattern(text: str, answer_pattern: str) -> str:
    """The first group of a regular expression, or nothing."""
    found = re.search(answer_pattern, text)
    return (found[1] if found.re.groups else found[0]) if found else ""


def to_letter(text: str, labels: Sequence[str]) -> str:
    """A label as the letter of its place in ``labels``: the options of a prompt."""
    places = [str(label) for label in labels]
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[places.index(text)] if text in places else text


def first_line(text: str) -> str:
    """The first line that is not empty, without spaces around it."""
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def _plain(number: str) -> str:
    """``1,200.00`` and ``1200`` are one number."""
    number = number.replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


POSTPROCESSORS: dict[str, Callable[..., str]] = {
    "general": general,
    "general-cn": general_cn,
    "first-capital": first_capital,
    "last-capital": last_capital,
    "first-capital-multi": first_capital_multi,
    "multiple-select": multiple_select,
    "first-option": first_option,
    "last-option": last_option,
    "first-number": first_number,
    "last-number": last_number,
    "gsm8k": last_number,
    "gsm8k-dataset": gsm8k_answer,
    "lambada": lambada,
    "cmrc": cmrc,
    "bbh-mcq": bbh_choice,
    "bbh-freeform": bbh_free,
    "extract-non-reasoning-content": without_thinking,
    "match-answer-pattern": match_answer_pattern,
    "humaneval": str,  # the evaluator finds the code itself
    "humaneval-postprocess-v2": str,
    "humaneval-postprocess-v3": str,
    "to-letter": to_letter,
    "first-line": first_line,
    "strip": str.strip,
}


def build_postprocessor(options: Mapping[str, Any] | None) -> Callable[[str], str]:
    """From ``dict(type="first-capital")``; none leaves the text as it is."""
    if options is None:
        return str
    name = class_name(options.get("type", "")).removesuffix("_postprocess").replace("_", "-")
    chosen = look_up(POSTPROCESSORS, name, "postprocessor")
    keywords = {key: value for key, value in options.items() if key != "type"}
    if not keywords and chosen not in (first_option, last_option, match_answer_pattern, to_letter):
        return chosen
    bound = functools.partial(chosen, **keywords)
    try:
        bound("")
    except TypeError as error:
        raise ValueError(f"postprocessor {options.get('type')}: {error}") from error
    return bound
