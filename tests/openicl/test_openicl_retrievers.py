"""Each retriever chooses what its definition says, and the same for a part of the test rows as for all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from autoeval.datasets.rows import DatasetError, Row
from autoeval.openicl import dense_retrievers
from autoeval.openicl.dense_retrievers import DPPRetriever, TopkRetriever, VotekRetriever, greedy_map
from autoeval.openicl.prompt_template import PromptTemplate
from autoeval.openicl.retrievers import Retriever, ZeroRetriever, build_retriever
from autoeval.openicl.sample import Prompting, Reader
from tests.openicl.test_openicl_templates import row
from tests.tiny_models import save_tiny_model

CONTEXT = Prompting(Reader("a", ("q",)), ZeroRetriever(), PromptTemplate("{q}"), None)
WORDS = [
    "cats like milk",
    "dogs chase cats",
    "milk is white",
    "planes fly high",
    "birds fly south in winter",
    "high tea",
]
TRAIN = [row(number, q=text, a="x") for number, text in enumerate(WORDS)]
TESTS = [(number, row(q=text)) for number, text in enumerate(["the cats", "what can fly high", "milk"])]


def chosen(retriever: Retriever, tests: Any = TESTS, train: Any = TRAIN) -> list[list[int]]:
    return [[train.index(one) for one in rows] for rows in retriever.retrieve(tests, train, CONTEXT)]


def test_random_examples_are_openicls_draw_and_do_not_depend_on_the_rest() -> None:
    retriever = build_retriever({"type": "RandomRetriever", "ice_num": 3, "seed": 43})
    numpy.random.seed(43)
    expected = [numpy.random.choice(6, 3, replace=False).tolist() for _ in range(3)]
    assert chosen(retriever) == expected
    assert chosen(retriever, TESTS[2:]) == expected[2:]
    with pytest.raises(DatasetError, match="7 in-context examples are asked for, but there are 6"):
        chosen(build_retriever({"type": "RandomRetriever", "ice_num": 7}))


def test_a_window_slides_over_the_training_rows() -> None:
    retriever = build_retriever({"type": "SlidingWindowRetriever", "k": 2})
    assert chosen(retriever) == [[4, 5], [5, 0], [0, 1]]
    assert chosen(retriever, [(8, TESTS[0][1])]) == [[0, 1]]


def test_bm25_finds_the_rows_that_share_rare_words() -> None:
    assert chosen(build_retriever({"type": "BM25Retriever", "ice_num": 2})) == [[0, 1], [3, 5], [0, 2]]


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings by hand: a row's ``q`` is its angle in degrees."""

    def embed(self: TopkRetriever, rows: list[Row], context: Any) -> Any:
        angles = numpy.radians([float(one["q"]) for one in rows])
        return numpy.stack([numpy.cos(angles), numpy.sin(angles)], axis=1)

    monkeypatch.setattr(TopkRetriever, "embed", embed)


def degrees(*angles: float) -> list[Row]:
    return [row(number, q=angle) for number, angle in enumerate(angles)]


@pytest.mark.usefixtures("plane")
def test_topk_takes_the_nearest_first() -> None:
    train, tests = degrees(0, 10, 30, 90, 180), list(enumerate(degrees(25, 100)))
    assert chosen(TopkRetriever(ice_num=2), tests, train) == [[2, 1], [3, 2]]


@pytest.mark.usefixtures("plane")
def test_dpp_prefers_unlike_examples() -> None:
    train, tests = degrees(0, 0.5, 1, 40, 320), list(enumerate(degrees(0)))
    assert set(chosen(TopkRetriever(ice_num=3), tests, train)[0]) == {0, 1, 2}
    found = chosen(DPPRetriever(ice_num=3, candidate_num=5, scale_factor=0.5), tests, train)[0]
    assert found[0] == 0 and set(found) >= {3, 4}


def test_the_greedy_map_has_the_largest_determinant_of_each_step() -> None:
    draw = numpy.random.default_rng(0)
    vectors = draw.standard_normal((8, 5))
    kernel = vectors @ vectors.T
    expected: list[int] = []
    for _ in range(4):
        gains = {
            one: numpy.linalg.det(kernel[numpy.ix_([*expected, one], [*expected, one])])
            for one in range(8)
            if one not in expected
        }
        expected.append(max(gains, key=lambda one: gains[one]))
    assert greedy_map(kernel, 4) == expected


@pytest.mark.usefixtures("plane")
def test_votek_takes_one_of_each_crowd_for_all_rows() -> None:
    train = degrees(0, 1, 2, 3, 120, 121, 122, 123)
    first, second = chosen(VotekRetriever(ice_num=2, votek_k=2), list(enumerate(degrees(0, 200))), train)
    assert first == second
    assert len({place // 4 for place in first}) == 2, "one of either crowd"


@pytest.mark.usefixtures("plane")
def test_mdl_takes_the_examples_that_make_the_model_surest(monkeypatch: pytest.MonkeyPatch) -> None:
    import autoeval.models.hf

    model = SimpleNamespace(unload=lambda: None)
    monkeypatch.setattr(autoeval.models.hf, "HuggingFaceModel", lambda path: model)
    monkeypatch.setattr(
        dense_retrievers,
        "label_entropy",
        lambda model, test, rows, context: abs(rows[0]["q"] - 2) + abs(rows[1]["q"] - 3),
    )
    retriever = build_retriever({"type": "MDLRetriever", "ice_num": 2, "candidate_num": 4, "select_time": 40})
    assert chosen(retriever, [(0, degrees(0)[0])], degrees(0, 1, 2, 3, 50)) == [[2, 3]]


def test_an_entropy_over_labels_is_that_of_the_models_cross_entropies(tmp_path: Path) -> None:
    from autoeval.models.hf import HuggingFaceModel

    model = HuggingFaceModel(save_tiny_model(tmp_path), device="cpu")
    template = PromptTemplate({"A": "</E>{q} yes", "B": "</E>{q} no no"}, ice_token="</E>")
    made = Prompting(Reader("a", ("q",)), build_retriever({"type": "TopkRetriever"}), template, None)
    shots, test = [row(q="the sky", a="A")], row(q="a cat", a="B")
    ice = "the sky yes\n"
    head = len(model.tokenizer(ice)["input_ids"])
    import torch

    means = []
    for text in (f"{ice}a cat yes", f"{ice}a cat no no"):
        ids = torch.tensor(model.tokenizer(text)["input_ids"])
        with torch.no_grad():
            table = torch.log_softmax(model.model(ids[None]).logits[0].float(), dim=-1)
        means.append(float(numpy.mean([table[i - 1, ids[i]] for i in range(head, len(ids))])))
    chances = numpy.exp(means) / numpy.exp(means).sum()
    expected = -(chances * numpy.log(chances)).sum()
    assert dense_retrievers.label_entropy(model, test, shots, made) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_topk_with_a_real_sentence_transformer(tmp_path: Path) -> None:
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    from sentence_transformers import SentenceTransformer

    body = modules.Transformer(str(save_tiny_model(tmp_path / "body")), processor_kwargs={"pad_token": "</s>"})
    pooling = modules.Pooling(body.get_embedding_dimension())
    SentenceTransformer(modules=[body, pooling], device="cpu").save(str(tmp_path / "embedder"))
    retriever = TopkRetriever(ice_num=1, sentence_transformers_model_name=str(tmp_path / "embedder"))
    assert chosen(retriever, [(number, train) for number, train in enumerate(TRAIN)]) == [[n] for n in range(6)]


def test_nothing_is_downloaded() -> None:
    with pytest.raises(DatasetError, match="expected a directory"):
        chosen(TopkRetriever(ice_num=1))
