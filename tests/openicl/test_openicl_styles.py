"""Turns become what each kind of model wants to read."""

from __future__ import annotations

import pytest

from autoeval.openicl.prompt_template import PromptTemplate, Turn
from autoeval.openicl.retrievers import FixKRetriever
from autoeval.openicl.sample import Prompting, Reader
from autoeval.openicl.styles import ChatStyle, MetaStyle, PlainStyle, build_style, messages
from tests.openicl.test_openicl_templates import row

META = {
    "begin": "<s>",
    "round": [
        {"role": "HUMAN", "begin": "[H] ", "end": " [/H]"},
        {"role": "BOT", "begin": "[B] ", "end": " [/B]", "generate": True},
    ],
    "end": "</s>",
    "reserved_roles": [{"role": "SYSTEM", "begin": "[S] ", "end": " [/S]"}],
}
TEMPLATE = PromptTemplate(
    {
        "begin": [{"role": "SYSTEM", "fallback_role": "HUMAN", "prompt": "Be brief."}, "</E>"],
        "round": [{"role": "HUMAN", "prompt": "Q: {q}"}, {"role": "BOT", "prompt": "A: {a}"}],
    },
    ice_token="</E>",
)
EXAMPLE = PromptTemplate({"round": [{"role": "HUMAN", "prompt": "Q: {q}"}, {"role": "BOT", "prompt": "A: {a}"}]})


def prompting(style: object) -> Prompting:
    return Prompting(Reader("a", ("q",)), FixKRetriever([0, 1]), TEMPLATE, EXAMPLE, style=style)  # type: ignore[arg-type]


TRAIN = [row(q="one?", a="1"), row(q="two?", a="2")]
TEST = row(q="three?", a="3")


def text(style: object, *, generate: bool) -> str:
    made = prompting(style)
    return made.prompt(TEST, made.ice(TRAIN), blank=generate, generate=generate)


def test_a_base_model_reads_turns_one_under_the_other() -> None:
    assert text(PlainStyle(), generate=False) == "Be brief.\nQ: one?\nA: 1\nQ: two?\nA: 2\nQ: three?\nA: 3"


def test_a_meta_template_wraps_every_role_and_stops_where_the_model_speaks() -> None:
    shots = "[H] Q: one? [/H][B] A: 1 [/B][H] Q: two? [/H][B] A: 2 [/B]"
    assert text(MetaStyle(META), generate=True) == f"<s>[S] Be brief. [/S]{shots}[H] Q: three? [/H][B] "
    assert text(MetaStyle(META), generate=False) == (f"<s>[S] Be brief. [/S]{shots}[H] Q: three? [/H][B] A: 3 [/B]</s>")


def test_an_unknown_role_falls_back_or_is_an_error() -> None:
    bare = MetaStyle({"round": META["round"]})
    assert text(bare, generate=True).startswith("[H] Be brief. [/H]")
    with pytest.raises(ValueError, match="no role 'JUDGE'"):
        bare.render([Turn("x", "JUDGE")])
    with pytest.raises(ValueError, match="meta_template: expected begin"):
        build_style({"rounds": []})


def test_a_round_without_the_model_gets_its_turn() -> None:
    style = MetaStyle(META)
    assert style.render([Turn("Hi", "HUMAN")], generate=True) == "<s>[H] Hi [/H][B] "
    assert style.render([Turn("Hi", "HUMAN")]) == "<s>[H] Hi [/H][B]  [/B]</s>"
    assert style.render([Turn("plain text")], generate=True) == "<s>plain text</s>"
    turns = [Turn("Hi", "HUMAN", begin="(", end=")"), Turn("Ho", "BOT")]
    assert style.render(turns) == "<s>(Hi)[B] Ho [/B]</s>"


def test_what_the_model_said_is_cut_at_its_roles_end() -> None:
    style = MetaStyle(META)
    assert style.cut("[B] yes [/B][H] and then?", "BOT") == "yes"
    assert style.cut("yes [/B] more", "BOT") == "yes"
    with pytest.raises(ValueError, match="pred_role 'JUDGE'"):
        style.cut("yes", "JUDGE")


class Tokenizer:
    chat_template = "yes"

    def apply_chat_template(self, said: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        return "".join(f"<{m['role']}>{m['content']}" for m in said) + ("<assistant>" if add_generation_prompt else "")


def test_a_chat_model_gets_its_own_template_without_more_special_tokens() -> None:
    style = ChatStyle(Tokenizer())
    shots = "<user>Q: one?<assistant>A: 1<user>Q: two?<assistant>A: 2"
    assert text(style, generate=True) == f"<system>Be brief.{shots}<user>Q: three?<assistant>"
    assert text(style, generate=False) == f"<system>Be brief.{shots}<user>Q: three?<assistant>A: 3"
    assert style.special_tokens is False
    with pytest.raises(ValueError, match="no chat_template"):
        ChatStyle(object())


def test_neighbours_of_one_role_are_one_message() -> None:
    turns = [Turn("a"), Turn("b", "HUMAN"), Turn("c", "BOT"), Turn("", "BOT")]
    assert messages(turns) == [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "c\n"}]
    assert messages(turns, generate=True) == [{"role": "user", "content": "a\nb"}]
