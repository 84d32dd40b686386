"""Prompts come out as their templates say."""

from __future__ import annotations

import pytest

from autoeval.datasets.rows import DatasetError, Row
from autoeval.openicl.inferencers import build_inferencer
from autoeval.openicl.prompt_template import PromptTemplate, Turn, safe_format
from autoeval.openicl.retrievers import FixKRetriever, ZeroRetriever, build_retriever
from autoeval.openicl.sample import Prompting, Reader
from autoeval.openicl.styles import PlainStyle


def row(number: int = 1, **columns: object) -> Row:
    return Row(dict(columns), f"file.jsonl:{number}")


def test_values_with_braces_are_left_alone() -> None:
    assert safe_format("{a} {b} {c}", {"a": "{b}", "b": 2}) == "{b} 2 {c}"


def test_a_template_per_label_knows_labels_of_any_type() -> None:
    template = PromptTemplate({1: "one {x}", 2: "two {x}"})
    assert template.labels == [1, 2]
    assert template.turns({"x": "!"}, label="2") == [Turn("two !")]
    with pytest.raises(ValueError, match="no template for label 3"):
        template.turns({"x": "!"}, label=3)


def test_rounds_lie_one_under_the_other() -> None:
    template = PromptTemplate(
        {
            "begin": [{"role": "SYSTEM", "fallback_role": "HUMAN", "prompt": "Answer."}, "</E>"],
            "round": [{"role": "HUMAN", "prompt": "Q: {q}"}, {"role": "BOT", "prompt": "A: {a}"}],
        },
        ice_token="</E>",
    )
    plain = PlainStyle()
    assert plain.render(template.turns({"q": "why?", "a": "so"})) == "Answer.\nQ: why?\nA: so"
    assert plain.render(template.turns({"q": "why?", "a": ""}, ice=[Turn("{q}")])) == "Answer.\n{q}\nQ: why?\nA: "


def test_in_context_examples_are_joined_and_placed() -> None:
    ice = PromptTemplate({"A": "{q} -> a\n", "B": "{q} -> b\n"})
    prompt = PromptTemplate({"A": "Do:\n</E>{q} -> a", "B": "Do:\n</E>{q} -> b"}, ice_token="</E>")
    retriever = FixKRetriever([2, 0])
    prompting = Prompting(Reader(output_column="gold"), retriever, prompt, ice)
    train = [row(q="one", gold="A"), row(q="two", gold="A"), row(q="three", gold="B")]
    test = row(q="four", gold="A")
    (examples,) = retriever.retrieve([(0, test)], train, prompting)
    text = prompting.prompt(test, prompting.ice(examples), label="B")
    assert text == "Do:\nthree -> b\n\none -> a\n\nfour -> b"


def test_fixed_examples_can_be_counted_within_a_group() -> None:
    retriever = build_retriever({"type": "FixKRetriever", "fix_id_list": [0], "group_column": "subject"})
    train = [row(subject="law", q=1), row(subject="art", q=2)]
    assert retriever.retrieve([(0, row(subject="art"))], train, None) == [[train[1]]]
    with pytest.raises(DatasetError, match="there are 0 training rows"):
        retriever.retrieve([(0, row(subject="music"))], train, None)


def test_choices_may_differ_in_number_from_row_to_row() -> None:
    prompting = Prompting(
        Reader("gold", choices_column="choices"), ZeroRetriever(), PromptTemplate("{q} {choice}"), None
    )
    three = row(q="?", choices=["x", "y", "z"], gold=2)
    assert prompting.labels(three) == [0, 1, 2]
    assert prompting.prompt(three, label=1) == "? y"
    assert prompting.gold(three) == "2"
    with pytest.raises(DatasetError, match=r"file\.jsonl:1: 'gold' is 3, which is none of 0, 1, 2"):
        prompting.gold(row(q="?", choices=["x", "y", "z"], gold=3))
    with pytest.raises(DatasetError, match="1 choices, expected at least two"):
        prompting.labels(row(q="?", choices=["x"], gold=0))


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'FixKRetriever'"):
        build_retriever({"type": "FixkRetriever"})
    with pytest.raises(ValueError, match="did you mean 'PPLInferencer'"):
        build_inferencer({"type": "opencompass.openicl.PPLInferencers"})
    with pytest.raises(ValueError, match="GenInferencer"):
        build_inferencer({"type": "GenInferencer", "max_out_length": 3})


def test_options_of_opencompass_that_have_no_effect_here_are_accepted() -> None:
    options = {"type": "GenInferencer", "max_out_len": 5, "batch_size": 4, "max_seq_len": 8192, "save_every": 8}
    assert build_inferencer(options).kind == "text"
    with pytest.raises(ValueError, match="min_out_len 60"):
        build_inferencer({"type": "GenInferencer", "min_out_len": 60})
