"""The baselines that the demo commits are the ones that its script measures."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from demos.quickstart import baselines, language

DEMO = Path(baselines.__file__).parent


@pytest.fixture(scope="module")
def ngrams(tmp_path_factory: pytest.TempPathFactory):
    output = tmp_path_factory.mktemp("language")
    language.write_language(output, count=500)
    tokenizer = baselines.load_tokenizer(output, output / "tokenizer")
    ids = baselines.encode_corpus(output)
    return [baselines.NgramModel(ids, order, tokenizer) for order in baselines.ORDERS]


def test_probabilities_of_all_tokens_sum_to_one(ngrams) -> None:
    for model in ngrams:
        for context in ([], [5], [300, 301, 302]):
            total = sum(model.probability(context, token) for token in range(len(model.tokenizer)))
            assert total == pytest.approx(1, abs=1e-9)


def test_a_trigram_ends_a_line_where_the_corpus_does(ngrams) -> None:
    from autoeval.models.requests import GenerationRequest

    model = ngrams[-1]
    prompt = tuple(model.tokenizer.encode("today Mira works as a baker"))
    (result,) = model.generate([GenerationRequest(prompt, 5, stop=("\n",))])
    assert result.text == " ." and result.finish_reason == "stop"


@pytest.mark.slow
def test_the_committed_baselines_are_what_the_script_measures(tmp_path: Path) -> None:
    committed = yaml.safe_load((DEMO / "baselines.yaml").read_text())["evals"]
    assert len(committed) >= 2
    assert baselines.measure(tmp_path) == committed
