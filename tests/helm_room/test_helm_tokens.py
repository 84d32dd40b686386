"""Tokens that are kept: those of just this tokenizer, with its special tokens where the model reads them."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from autoeval.helm import tokens
from autoeval.helm.tokens import TEXT, TokenTable, fingerprint, prompt_ids, prompt_kind, table_of


def tokenizer(words: str, *, begins: bool = False, **options: Any) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(WordLevel({word: number for number, word in enumerate(["<s>", "?", *words.split()])}, "?"))
    made.pre_tokenizer = Whitespace()
    if begins:
        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<s>", unk_token="?", **options)


def test_a_tokenizer_is_known_by_what_it_does_and_forgotten_with_its_object() -> None:
    first, same, other = tokenizer("a b c"), tokenizer("a b c"), tokenizer("c b a")
    assert fingerprint(first) == fingerprint(same) != fingerprint(other)
    assert table_of(first) is table_of(same) is not table_of(other)
    gc.collect()  # those of former tests
    known = len(tokens._FINGERPRINTS)
    del first, same
    gc.collect()
    # The next tokenizer may get the memory, and so the id, of one that is gone.
    assert len(tokens._FINGERPRINTS) == known - 2
    assert fingerprint(object()) is None


def test_two_tokenizers_that_differ_in_their_configuration_only_are_two() -> None:
    whole, split = tokenizer("a b c"), tokenizer("a b c", split_special_tokens=True)
    for _ in range(2):
        assert prompt_ids(whole, ["a <s> b"]) == [(2, 0, 3)]
        assert prompt_ids(split, ["a <s> b"]) == [tuple(split("a <s> b")["input_ids"])] != [(2, 0, 3)]
    assert fingerprint(whole) != fingerprint(tokenizer("a b c", clean_up_tokenization_spaces=True))


def test_prompts_have_the_tokens_that_the_tokenizer_adds_and_helm_counts_without_them() -> None:
    plain, begins = tokenizer("a b c"), tokenizer("a b c", begins=True)
    for texts in (["a b", "c", "a b"], ["c", "b"]):  # the second time from what is kept, in part
        assert prompt_ids(plain, texts) == [tuple(plain(text)["input_ids"]) for text in texts]
        assert prompt_ids(begins, texts) == [(0, *plain(text)["input_ids"]) for text in texts]
    assert prompt_kind(plain) == TEXT != prompt_kind(begins)
    assert table_of(begins).get(TEXT, "c") is None
    assert prompt_ids(plain, [""]) == [()]


def test_what_is_kept_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "KEPT_TOKENS", 5)
    table = TokenTable()
    table.keep("text", "a", [1, 2, 3])
    table.keep("text", "a", [9])
    table.keep("pieces", "a", ["x", "y"])
    assert (list(table.get("text", "a") or ()), table.get("pieces", "a")) == ([1, 2, 3], ("x", "y"))
    table.keep("text", "b", [4])
    assert table.get("text", "a") is None and list(table.get("text", "b") or ()) == [4]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoeval/gpt-x", "autoeval/x"])
def test_helm_gets_the_tokens_that_its_own_tokenizer_class_makes(name: str, tiny_models: tuple[Path, Path]) -> None:
    from helm.common.cache_backend_config import BlackHoleCacheBackendConfig
    from helm.common.tokenization_request import TokenizationRequest
    from helm.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer
    from helm_tiny_models import DirectModel

    from autoeval.helm.runner import ENGINES
    from autoeval.helm.tokenizer import EngineTokenizer

    cache = BlackHoleCacheBackendConfig().get_cache_config("autoeval")
    stock = HuggingFaceTokenizer(cache, name, pretrained_model_name_or_path=str(tiny_models[0]))
    ENGINES[name] = DirectModel(tiny_models[0])
    try:
        ours = EngineTokenizer(cache, name)
        for _ in range(2):
            for text in ("The quick brown fox", " é\n\nB.", ""):
                for options in ({}, {"encode": True}, {"encode": True, "truncation": True, "max_length": 3}):
                    request = TokenizationRequest(text, name, **options)
                    assert ours.tokenize(request).tokens == stock.tokenize(request).tokens, (text, options)
    finally:
        del ENGINES[name]
        HuggingFaceTokenizer._tokenizers.pop(name, None)


@pytest.mark.slow
def test_a_prompt_file_with_broken_token_ids_is_as_good_as_none(tiny_models: tuple[Path, Path], tmp_path: Path) -> None:
    from helm_tiny_models import DirectModel

    from autoeval.helm.run import run_helm_task
    from autoeval.helm.spec import HelmTask

    task = HelmTask("dyck_language", "v", ("dyck_language:num_parenthesis_pairs=3",), (), 2)

    def run(name: str) -> float:
        outcome = run_helm_task(
            task, DirectModel(tiny_models[0]), model_name=name, output_path=tmp_path, suite="s"
        )  # fmt: skip
        return outcome.cost["prompts_reused"]

    assert (run("a"), run("b")) == (0, 1)
    (path,) = (tmp_path / "prompts").glob("*.json")
    stamp, _, packed = path.read_text().partition("\n")
    for number, broken in enumerate(([], ["ab", "cd"], [[1e99], [2]], [[2**70], [1]])):
        path.write_text(f"{stamp}\n{json.dumps({**json.loads(packed), 'prompt_ids': broken})}")
        assert run(f"c{number}") == 0
        assert run(f"d{number}") == 1  # written anew
