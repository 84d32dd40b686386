"""Styles: how turns become the text that a model reads.

``PlainStyle`` is for base models: turns lie one under the other. ``MetaStyle`` is OpenCompass's ``meta_template`` of a
model. ``ChatStyle`` is a tokenizer's own chat template. A model that is asked with messages (an API) gets
``messages(turns)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from autoeval.openicl.prompt_template import Turn

Message = dict[str, str]  # role (system, user, assistant) and content

CHAT_ROLES = {"SYSTEM": "system", "HUMAN": "user", "BOT": "assistant"}


class Style(Protocol):
    """``special_tokens``: whether the tokenizer shall add its own (BOS) when the text is encoded."""

    special_tokens: bool

    def render(self, turns: Sequence[Turn], *, generate: bool = False) -> str:
        """One text. ``generate``: the model goes on from here, so it ends where the model's turn begins."""
        ...

    def cut(self, text: str, role: str) -> str:
        """What of a generated ``text`` is said by ``role`` (OpenCompass's ``pred_role``)."""
        ...


class PlainStyle:
    """Turns that are not empty, each on a new line."""

    special_tokens = True

    def render(self, turns: Sequence[Turn], *, generate: bool = False) -> str:
        return "\n".join(turn.text for turn in turns if turn.text)

    def cut(self, text: str, role: str) -> str:
        return text


class MetaStyle:
    """A model's ``meta_template``: what stands before and after each role's words.

    ``dict(begin=..., round=[dict(role="HUMAN", begin="<|Human|>: ", end="\\n"), dict(role="BOT", begin="<|Bot|>: ",
    end="\\n", generate=True)], end=..., reserved_roles=[dict(role="SYSTEM", begin=..., end=...)])``. Every round of a
    prompt has all roles of ``round`` in their order; those that the prompt does not speak for are empty. A text to be
    continued ends after ``begin`` of the role with ``generate``. Raises ``ValueError`` for a template of another shape
    and for a role that it does not know.
    """

    special_tokens = True

    def __init__(self, meta_template: Mapping[str, Any]) -> None:
        unknown = set(meta_template) - {"begin", "round", "end", "reserved_roles", "eos_token_id"}
        if unknown or not isinstance(meta_template.get("round"), Sequence):
            raise ValueError(
                f"meta_template: expected begin, round=[...], end, reserved_roles; found {meta_template!r}"
            )
        self.round = [_role(entry) for entry in meta_template["round"]]
        self.roles = {entry["role"]: entry for entry in self.round}
        self.roles |= {entry["role"]: entry for entry in map(_role, meta_template.get("reserved_roles", []))}
        self.order = {entry["role"]: place for place, entry in enumerate(self.round)}
        self.begin = self._fixed(meta_template.get("begin", ""))
        self.end = self._fixed(meta_template.get("end", ""))

    def render(self, turns: Sequence[Turn], *, generate: bool = False) -> str:
        parts = [self.begin]
        groups = list(self._groups(turns))
        for number, group in enumerate(groups):
            if not isinstance(group, dict):
                parts.append(self._said(self._known(group), group) if group.role else group.text)
                continue
            last = generate and not any(isinstance(later, dict) for later in groups[number + 1 :])
            for entry in self.round:
                if last and entry.get("generate"):
                    turn = group.get(entry["role"])
                    return "".join(parts) + _first(turn.begin if turn else None, entry.get("begin"))
                parts.append(self._said(entry, group.get(entry["role"])))
        return "".join(parts) + self.end

    def cut(self, text: str, role: str) -> str:
        if role not in self.roles:
            raise ValueError(f"pred_role {role!r} is none of the meta_template's: {', '.join(self.roles)}")
        begin, end = self.roles[role].get("begin") or "", self.roles[role].get("end") or ""
        if begin and begin in text:
            text = text.split(begin, 1)[1]
        return text.split(end, 1)[0] if end else text

    def _groups(self, turns: Sequence[Turn]) -> Iterator[dict[str, Turn] | Turn]:
        """Rounds (turns by role, none before an earlier one in ``self.round``), and single turns outside of rounds."""
        current: dict[str, Turn] = {}
        for turn in turns:
            role = self._known(turn)["role"] if turn.role else None
            if role is None or role not in self.order or turn.section in ("begin", "end"):
                if current:
                    yield current
                current = {}
                if turn.text:
                    yield turn
                continue
            if current and self.order[role] <= max(self.order[known] for known in current):
                yield current
                current = {}
            current[role] = turn
        if current:
            yield current

    def _known(self, turn: Turn) -> Mapping[str, Any]:
        for role in (turn.role, turn.fallback_role):
            if role in self.roles:
                return self.roles[role]
        raise ValueError(f"the meta_template has no role {turn.role!r} (it has: {', '.join(self.roles)})")

    def _said(self, entry: Mapping[str, Any], turn: Turn | None) -> str:
        text = turn.text if turn else entry.get("prompt") or ""
        begin, end = (turn.begin, turn.end) if turn else (None, None)
        return _first(begin, entry.get("begin")) + text + _first(end, entry.get("end"))

    def _fixed(self, part: Any) -> str:
        """``begin`` or ``end`` of the whole: text, a role with its prompt, or a list of them."""
        entries = part if isinstance(part, Sequence) and not isinstance(part, str) else [part]
        texts = []
        for entry in entries:
            if isinstance(entry, str):
                texts.append(entry)
                continue
            turn = Turn(entry.get("prompt", ""), entry.get("role"), entry.get("fallback_role"))
            texts.append(self._said(self._known(turn), turn))
        return "".join(texts)


class ChatStyle:
    """The tokenizer's chat template; it has the special tokens in it, so that none may be added."""

    special_tokens = False

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("the tokenizer has no chat_template: evaluate it as a base model")
        self._tokenizer = tokenizer

    def render(self, turns: Sequence[Turn], *, generate: bool = False) -> str:
        said = messages(turns, generate=generate)
        return str(self._tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=generate))

    def cut(self, text: str, role: str) -> str:
        return text


def messages(turns: Sequence[Turn], *, generate: bool = False) -> list[Message]:
    """Turns as chat messages; neighbours of one role are one message. With ``generate`` the last is not the model's."""
    said: list[Message] = []
    for turn in turns:
        role = CHAT_ROLES.get(turn.role or "HUMAN", (turn.role or "").lower())
        if said and said[-1]["role"] == role:
            said[-1]["content"] += "\n" + turn.text
        elif turn.text or role == "assistant":
            said.append({"role": role, "content": turn.text})
    if generate and said and said[-1]["role"] == "assistant":
        said.pop()
    if not said:
        raise ValueError("the prompt is empty")
    return said


def build_style(meta_template: Mapping[str, Any] | None, *, tokenizer: Any = None, chat: bool = False) -> Style:
    """A model's style: its ``meta_template``; else, for a ``chat`` model, the tokenizer's template; else plain."""
    if meta_template is not None:
        return MetaStyle(meta_template)
    return ChatStyle(tokenizer) if chat else PlainStyle()


def _role(entry: Any) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("role"), str):
        raise ValueError(f"meta_template: {entry!r} is no role, expected dict(role='HUMAN', begin=..., end=...)")
    return entry


def _first(*values: str | None) -> str:
    return next((value for value in values if value is not None), "")
