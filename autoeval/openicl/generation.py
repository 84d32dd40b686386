"""Inferencers that generate: one answer, several, a majority's, or the turns of a dialogue."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from autoeval.models.requests import GenerationRequest, GenerationResult, LanguageModel
from autoeval.openicl.asking import Asked, Record
from autoeval.openicl.encoding import Encoder, truncation_notes
from autoeval.openicl.prompt_template import PromptTemplate, Turn
from autoeval.openicl.sample import Prompting, Sample, most_examples
from autoeval.openicl.styles import CHAT_ROLES, ChatStyle, Message, messages


@dataclass(frozen=True)
class ChatRequest:
    """As ``GenerationRequest``, with messages in place of token ids."""

    messages: tuple[Message, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0
    min_new_tokens: int = 0


class ChatModel(Protocol):
    """A model behind a chat API. It is asked with messages; window and tokens are the server's business."""

    def generate_messages(self, requests: Sequence[ChatRequest]) -> list[GenerationResult]: ...


class GenInferencer:
    """Generates ``max_out_len`` tokens at most, up to the first stop string, and at least ``min_out_len``, unless a stop
    string comes earlier. ``temperature`` 0 is greedy.

    ``num_return_sequences`` above 1 samples so many texts, and the prediction is their list. A sampled text depends on
    ``seed``, the item and its place in the list alone. ``generation_kwargs`` are accepted as OpenCompass's users write
    them (``do_sample``, ``temperature``, ``top_p``, ``top_k``, ``num_return_sequences``).
    """

    kind = "text"
    continuation: PromptTemplate | None = None

    def __init__(
        self,
        max_out_len: int = 50,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        num_return_sequences: int = 1,
        min_out_len: int | None = None,
        stopping_criteria: Sequence[str] = (),
        generation_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        sampling = dict(generation_kwargs or {})
        wants = sampling.pop("do_sample", None)
        temperature = float(sampling.pop("temperature", 1.0 if wants and temperature == 0 else temperature))
        if wants is False:
            temperature = 0.0
        self.temperature, self.top_p = temperature, float(sampling.pop("top_p", top_p))
        self.top_k = int(sampling.pop("top_k", top_k))
        self.sequences = int(sampling.pop("num_return_sequences", num_return_sequences))
        self.seed = seed
        self.max_out_len = max_out_len
        self.stop = tuple([stop] if isinstance(stop, str) else stop) + tuple(stopping_criteria)
        if sampling:
            raise ValueError(f"generation_kwargs: {min(sampling)!r} is not supported")
        if max_out_len < 1 or self.sequences < 1:
            raise ValueError(
                f"max_out_len {max_out_len} and num_return_sequences {self.sequences}: expected at least 1"
            )
        if self.sequences > 1 and self.temperature == 0:
            raise ValueError("num_return_sequences above 1 needs a temperature: greedy texts are all the same")
        self.min_out_len = min_out_len or 0
        if not 0 <= self.min_out_len <= max_out_len:
            raise ValueError(f"min_out_len {min_out_len}: expected 0 to max_out_len, which is {max_out_len}")

    def ask(self, model: LanguageModel, samples: Sequence[Sample], prompting: Prompting) -> Asked:
        asked = [self._prompt(model, sample, prompting) for sample in samples]
        requests = [
            self._request(prompt, sample, number)
            for sample, (_, prompt, _) in zip(samples, asked, strict=True)
            for number in range(self.sequences)
        ]

        def then(results: Sequence[GenerationResult]) -> list[Record]:
            texts = iter(results)
            records = []
            for sample, (shown, _, notes) in zip(samples, asked, strict=True):
                made = [_checked(next(texts), sample) for _ in range(self.sequences)]
                prediction = self._prediction(made)
                records.append({"origin_prompt": shown, "prediction": prediction, **_gold(sample, prompting), **notes})
            return records

        return Asked(requests, then)

    def _prediction(self, texts: list[str]) -> str | list[str]:
        return texts[0] if self.sequences == 1 else texts

    def _prompt(self, model: LanguageModel, sample: Sample, prompting: Prompting) -> tuple[Any, Any, dict[str, int]]:
        """What the record shows, what the model is asked (token ids or messages), and what had to go."""
        if hasattr(model, "generate_messages"):
            said = messages(prompting.turns(sample.row, prompting.ice(sample.examples), blank=True), generate=True)
            return said, tuple(said), {}
        encode = Encoder(model, prompting.style.special_tokens)
        room = model.max_seq_len - self.max_out_len

        def text(ice: Sequence[Turn]) -> str:
            return prompting.prompt(sample.row, ice, blank=True, generate=True)

        ice, dropped = most_examples(sample, prompting, lambda ice: len(encode(text(ice))) <= room)
        prompt = text(ice)
        tokens = encode(prompt)
        return prompt, tokens, truncation_notes(dropped, len(tokens) - room)

    def _request(self, prompt: Any, sample: Sample, number: int) -> GenerationRequest | ChatRequest:
        seed = None
        if self.temperature > 0:
            name = f"{self.seed}:{sample.key}" + (f":{number}" if number else "")
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        kind: Any = ChatRequest if prompt and isinstance(prompt[0], dict) else GenerationRequest
        return kind(
            prompt, self.max_out_len, self.stop, self.temperature, self.top_p, seed, self.top_k, self.min_out_len
        )


class SCInferencer(GenInferencer):
    """Self-consistency (arXiv 2203.11171): ``sc_size`` sampled answers; the evaluator takes the majority's."""

    def __init__(self, sc_size: int = 1, infer_type: str = "SC", **options: Any) -> None:
        del infer_type
        super().__init__(num_return_sequences=sc_size, **options)

    def _prediction(self, texts: list[str]) -> str | list[str]:
        return texts


class ChatInferencer(GenInferencer):
    """Answers within a dialogue. The row has ``dialogue`` (messages), or columns that are lists, one entry a round.

    ``infer_mode``: ``last`` generates the last answer with the given history; ``every`` each answer in turn, with its
    own earlier answers as history; ``every_with_gt`` each answer, with the given ones as history. With ``chat_template``
    the tokenizer's own template is used wherever it has one, also by who asks a model in plain text (the daemon).
    """

    def __init__(
        self, infer_mode: str = "last", max_out_len: int = 512, chat_template: bool = False, **options: Any
    ) -> None:
        super().__init__(max_out_len=max_out_len, **options)
        self.chat_template = chat_template
        if infer_mode not in ("last", "every", "every_with_gt"):
            raise ValueError(f"infer_mode {infer_mode!r}: expected last, every or every_with_gt")
        if self.sequences > 1:
            raise ValueError("ChatInferencer gives one answer a turn: num_return_sequences must be 1")
        self.infer_mode = infer_mode

    def ask(self, model: LanguageModel, samples: Sequence[Sample], prompting: Prompting) -> Asked:
        chats = [_dialogue(sample, prompting) for sample in samples]
        places = [[i for i, message in enumerate(chat) if message["role"] == "assistant"] for chat in chats]
        for sample, answers in zip(samples, places, strict=True):
            if not answers or answers[0] == 0:
                raise ValueError(f"{sample.row.where}: the dialogue has no answer to give after a question")
        if self.infer_mode == "last":
            places = [answers[-1:] for answers in places]
        dialogues = [_Dialogue(*one) for one in zip(samples, chats, places, strict=True)]
        return self._round(model, prompting, dialogues, 0, [[] for _ in samples], [[] for _ in samples])

    def _round(
        self,
        model: LanguageModel,
        prompting: Prompting,
        dialogues: Sequence[_Dialogue],
        turn: int,
        shown: list[list[Any]],
        made: list[list[str]],
    ) -> Asked:
        """The answers number ``turn`` of all dialogues that have so many; ``made`` are those before, ``shown`` what was
        asked for them."""
        active = [number for number, dialogue in enumerate(dialogues) if turn < len(dialogue.places)]
        requests = []
        shown = [list(one) for one in shown]
        for number in active:
            own = made[number] if self.infer_mode == "every" else []
            seen, prompt = self._history(model, dialogues[number].before(turn, own), prompting)
            shown[number].append(seen)
            requests.append(self._request(prompt, dialogues[number].sample, turn))

        def then(results: Sequence[GenerationResult]) -> list[Record] | Asked:
            answers = [list(one) for one in made]
            for number, result in zip(active, results, strict=True):
                answers[number].append(_checked(result, dialogues[number].sample))
            if turn + 1 < max(len(dialogue.places) for dialogue in dialogues):
                return self._round(model, prompting, dialogues, turn + 1, shown, answers)
            return [self._record(*one) for one in zip(dialogues, shown, answers, strict=True)]

        return Asked(requests, then)

    def _record(self, dialogue: _Dialogue, shown: list[Any], texts: list[str]) -> Record:
        golds = [dialogue.chat[place]["content"] for place in dialogue.places]
        last = self.infer_mode == "last"
        return {
            "origin_prompt": shown[0] if last else shown,
            "prediction": texts[0] if last else texts,
            "gold": golds[0] if last else golds,
            "rounds": len(texts),
        }

    def _history(self, model: LanguageModel, history: list[Message], prompting: Prompting) -> tuple[Any, Any]:
        if hasattr(model, "generate_messages"):
            return history, tuple(history)
        roles = {chat: role for role, chat in CHAT_ROLES.items()}
        turns = [Turn(message["content"], roles.get(message["role"], "HUMAN")) for message in history]
        style = prompting.style
        if self.chat_template and getattr(model.tokenizer, "chat_template", None):
            style = ChatStyle(model.tokenizer)
        text = style.render(turns, generate=True)
        return text, Encoder(model, style.special_tokens)(text)


@dataclass(frozen=True)
class _Dialogue:
    """``places``: where in ``chat`` the answers are that are asked for."""

    sample: Sample
    chat: list[Message]
    places: list[int]

    def before(self, turn: int, own: Sequence[str]) -> list[Message]:
        """What precedes answer number ``turn``, with ``own`` in place of the first given answers."""
        history = self.chat[: self.places[turn]]
        for place, text in zip(self.places, own, strict=False):
            history[place] = {"role": "assistant", "content": text}
        return history


def _dialogue(sample: Sample, prompting: Prompting) -> list[Message]:
    """The row as messages; the answers in it are the given ones."""
    if "dialogue" in sample.row.columns:
        return [{"role": str(one["role"]), "content": str(one["content"])} for one in sample.row["dialogue"]]
    names = [*prompting.reader.input_columns, *filter(None, [prompting.reader.output_column])]
    columns = {name: sample.row[name] for name in names}
    rounds = max((len(value) for value in columns.values() if isinstance(value, list)), default=1)
    chat: list[Message] = []
    for number in range(rounds):
        row = {name: value[number] if isinstance(value, list) else value for name, value in columns.items()}
        turns = prompting.template.turns({**sample.row.columns, **row, str(prompting.reader.output_column): ""})
        chat.extend(messages(turns, generate=True))
        answer = row.get(prompting.reader.output_column or "", "")
        chat.append({"role": "assistant", "content": str(answer)})
    return chat


def _checked(result: GenerationResult, sample: Sample) -> str:
    if not all(map(math.isfinite, result.token_logprobs)):
        raise ValueError(f"{sample.row.where}: a log-probability is not finite: the model's weights are broken")
    return result.text


def _gold(sample: Sample, prompting: Prompting) -> dict[str, Any]:
    column = prompting.reader.output_column
    return {} if column is None else {"gold": sample.row[column]}
