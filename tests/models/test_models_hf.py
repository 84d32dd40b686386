"""Answers of the engine equal a straight recomputation, whatever is asked together with them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from autoeval.models.hf import HuggingFaceModel
from autoeval.models.requests import GenerationRequest, LoglikelihoodRequest
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def model(directory: Path) -> HuggingFaceModel:
    return HuggingFaceModel(directory, device="cpu")


def some_requests(vocab: int, window: int, count: int = 40) -> list[LoglikelihoodRequest]:
    draw = random.Random(7)
    requests = []
    for number in range(count):
        context = tuple(draw.randrange(vocab) for _ in range(draw.choice([0, 1, 5, 30, window])))
        continuation = tuple(draw.randrange(vocab) for _ in range(draw.choice([0, 1, 2, 9])))
        requests.append(LoglikelihoodRequest(context, continuation))
        if number % 4 == 0:  # labels of one question
            requests.extend(LoglikelihoodRequest(context, (label,)) for label in range(10, 14))
    return requests


def straight(model: HuggingFaceModel, request: LoglikelihoodRequest) -> tuple[list[float], bool]:
    """One row, all logits, log-softmax."""
    if not request.continuation:
        return [], True
    context = request.context or (model.prefix_token,)
    tokens = (context + request.continuation)[-(model.max_seq_len + 1) :]
    with torch.no_grad():
        logits = model.model(torch.tensor([tokens[:-1]])).logits[0].float()
    wanted = torch.tensor(request.continuation)
    table = torch.log_softmax(logits, dim=-1)[-len(wanted) :]
    return table[torch.arange(len(wanted)), wanted].tolist(), bool((table.argmax(-1) == wanted).all())


def test_loglikelihoods_equal_a_straight_recomputation(model: HuggingFaceModel) -> None:
    requests = some_requests(len(model.tokenizer), model.max_seq_len)
    for request, result in zip(requests, model.loglikelihoods(requests), strict=True):
        logprobs, greedy = straight(model, request)
        assert list(result.token_logprobs) == pytest.approx(logprobs, abs=1e-4)
        assert result.is_greedy == greedy
        excess = len(request.context) + len(request.continuation) - 1 - model.max_seq_len
        assert result.truncated_tokens == (max(0, excess) if request.continuation else result.truncated_tokens)


def test_loglikelihoods_do_not_depend_on_the_batch(directory: Path, model: HuggingFaceModel) -> None:
    requests = some_requests(len(model.tokenizer), model.max_seq_len, count=20)
    alone = HuggingFaceModel(directory, device="cpu")
    expected = [alone.loglikelihoods([request])[0] for request in requests]
    for budget in (16, 200, 100_000):
        model.batch_tokens = budget
        for one, other in zip(expected, model.loglikelihoods(requests), strict=True):
            assert list(one.token_logprobs) == pytest.approx(list(other.token_logprobs), abs=1e-4)
            assert one.is_greedy == other.is_greedy


def test_the_likeliest_continuation_is_greedy(model: HuggingFaceModel) -> None:
    prompt = tuple(model.tokenizer("The quick brown")["input_ids"])
    written = model.generate([GenerationRequest(prompt, 6)])[0]
    scored = model.loglikelihoods([LoglikelihoodRequest(prompt, written.tokens)])[0]
    assert scored.is_greedy
    assert list(scored.token_logprobs) == pytest.approx(list(written.token_logprobs), abs=1e-4)


def test_labels_of_one_question_cost_one_row(directory: Path) -> None:
    model = HuggingFaceModel(directory, device="cpu")
    model.loglikelihoods([LoglikelihoodRequest((3, 4, 5, 6), (label,)) for label in range(10)])
    assert model.cost.computed_tokens == 4
    assert model.cost.extra["logit_positions"] == 1
    assert model.cost.prompt_tokens == 40


def test_what_cannot_be_scored_is_an_error(model: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="does not fit the window of 128"):
        model.loglikelihoods([LoglikelihoodRequest((1,), (2,) * 200)])
    with pytest.raises(ValueError, match="token id 5000"):
        model.loglikelihoods([LoglikelihoodRequest((1,), (5000,))])
    with pytest.raises(ValueError, match="max_position_embeddings"):
        HuggingFaceModel(model.path, max_seq_len=4096)
    with pytest.raises(FileNotFoundError):
        HuggingFaceModel(model.path / "nowhere")


def test_a_tokenizer_that_ends_every_prompt_is_refused(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    directory = save_tiny_model(tmp_path, "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    end = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    tokenizer.save_pretrained(directory)
    with pytest.raises(ValueError, match=r"puts '</s>' after every text.*add_eos_token"):
        HuggingFaceModel(directory, device="cpu")


def hugging_face_greedy(model: HuggingFaceModel, prompt: tuple[int, ...], count: int) -> list[int]:
    inputs = torch.tensor([prompt])
    output = model.model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    written = output[0, len(prompt) :].tolist()
    return written[:-1] if written[-1] in model.stop_ids else written


def test_greedy_generation_is_that_of_transformers_row_by_row(model: HuggingFaceModel) -> None:
    draw = random.Random(3)
    requests = [
        GenerationRequest(tuple(draw.randrange(2, 290) for _ in range(draw.randrange(1, 40))), draw.randrange(1, 30))
        for _ in range(24)
    ]
    for budget in (5, 300, 100_000):
        model.batch_tokens = budget
        for request, result in zip(requests, model.generate(requests), strict=True):
            assert list(result.tokens) == hugging_face_greedy(model, request.prompt, request.max_new_tokens)
            scored = model.loglikelihoods([LoglikelihoodRequest(request.prompt, result.tokens)])[0]
            assert list(result.token_logprobs) == pytest.approx(list(scored.token_logprobs), abs=1e-3)


def test_stop_strings_end_the_text_and_are_not_part_of_it(model: HuggingFaceModel) -> None:
    prompts = [tuple(model.tokenizer(text)["input_ids"]) for text in ("The quick", "A cat sat on", "Question: what")]
    for prompt in prompts:
        whole = model.generate([GenerationRequest(prompt, 20)])[0]
        stop = whole.text[4:6]
        cut = model.generate([GenerationRequest(prompt, 20, stop=("never", stop))])[0]
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert cut.finish_reason == "stop"
        assert len(cut.tokens) == len(cut.token_logprobs)


def test_a_stop_string_that_is_a_special_token_ends_the_text(model: HuggingFaceModel) -> None:
    """Decoding leaves special tokens out, so in the text such a stop string is never found."""
    prompt = (20, 30, 40)
    kept, model.stop_ids = model.stop_ids, frozenset()
    head = model.model.get_output_embeddings().weight
    before = head.detach().clone()
    special = model.tokenizer.convert_tokens_to_ids("<s>")
    third = model.generate([GenerationRequest(prompt, 12)])[0].tokens[2]
    try:
        with torch.no_grad():
            head[[special, third]] = head[[third, special]]  # the model now says <s> where it said that token
        free = model.generate([GenerationRequest(prompt, 12)])[0]
        ended = model.generate([GenerationRequest(prompt, 12, stop=("<s>",))])[0]
    finally:
        with torch.no_grad():
            head.copy_(before)
        model.stop_ids = kept
    assert special in free.tokens and "<s>" not in free.text and free.finish_reason == "length"
    assert ended.tokens == free.tokens[: free.tokens.index(special)] and ended.finish_reason == "stop"


def test_end_of_text_ends_a_row_and_not_its_neighbours(model: HuggingFaceModel) -> None:
    prompt = (20, 30, 40)
    free = model.generate([GenerationRequest(prompt, 12)])[0]
    kept = model.stop_ids
    model.stop_ids = frozenset({free.tokens[3]})
    try:
        requests = [GenerationRequest(prompt, 12), GenerationRequest((50, 60), 5)]
        ended, other = model.generate(requests)
    finally:
        model.stop_ids = kept
    place = free.tokens.index(free.tokens[3])
    assert ended.tokens == free.tokens[:place] and ended.finish_reason == "stop"
    assert other.tokens == model.generate([GenerationRequest((50, 60), 5)])[0].tokens[: len(other.tokens)]


def test_sampling_depends_on_the_seed_alone(model: HuggingFaceModel) -> None:
    requests = [GenerationRequest((20, 30), 10, temperature=1.5, top_p=0.95, seed=seed) for seed in range(6)]
    together = model.generate(requests)
    assert [model.generate([request])[0].tokens for request in requests] == [one.tokens for one in together]
    assert len({one.tokens for one in together}) > 1
    nearly_greedy = model.generate([GenerationRequest((20, 30), 10, temperature=1.0, top_p=1e-6, seed=1)])[0]
    assert nearly_greedy.tokens == model.generate([GenerationRequest((20, 30), 10)])[0].tokens


def test_a_text_is_not_ended_before_its_least_length(model: HuggingFaceModel) -> None:
    free = model.generate([GenerationRequest((20, 30), 8)])[0]
    model.stop_ids |= {free.tokens[0], free.tokens[1]}
    try:
        assert model.generate([GenerationRequest((20, 30), 8)])[0].tokens == ()
        requests = [GenerationRequest((20, 30), 8, min_new_tokens=least) for least in (0, 3, 8)]
        texts = [one.tokens for one in model.generate(requests)]
        inputs = {"input_ids": torch.tensor([[20, 30]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
        ends = sorted(model.stop_ids)
        for request, text in zip(requests[1:], texts[1:], strict=True):
            least = request.min_new_tokens
            made = model.model.generate(
                **inputs, max_new_tokens=8, min_new_tokens=least, do_sample=False, eos_token_id=ends, pad_token_id=0
            )[0, 2:].tolist()
            assert list(text) == [token for token in made if token not in ends]
            assert len(text) >= least
    finally:
        model.stop_ids -= {free.tokens[0], free.tokens[1]}
    with pytest.raises(ValueError, match="min_new_tokens 9"):
        model.generate([GenerationRequest((20, 30), 8, min_new_tokens=9)])


def test_top_k_keeps_the_likeliest(model: HuggingFaceModel) -> None:
    requests = [GenerationRequest((25,), 1, temperature=5.0, top_k=3, seed=seed) for seed in range(200)]
    likeliest = model.model(torch.tensor([[25]])).logits[0, -1].topk(3).indices.tolist()
    assert {one.tokens[0] for one in model.generate(requests)} == set(likeliest)


def test_sampled_frequencies_are_the_models_probabilities(model: HuggingFaceModel) -> None:
    requests = [GenerationRequest((25,), 1, temperature=2.0, seed=seed) for seed in range(1500)]
    sampled = [one.tokens for one in model.generate(requests)]
    logits = model.model(torch.tensor([[25]])).logits[0, -1]
    probability, token = torch.softmax(logits.detach() / 2.0, dim=-1).max(dim=-1)
    share = sum(one == (int(token),) for one in sampled) / len(sampled)
    assert share == pytest.approx(float(probability), abs=4 * (float(probability) / 1500) ** 0.5 + 0.005)


def test_long_prompts_are_cut_from_the_left(model: HuggingFaceModel) -> None:
    prompt = tuple(2 + number % 280 for number in range(150))
    result = model.generate([GenerationRequest(prompt, 8)])[0]
    assert result.truncated_tokens == 30
    assert list(result.tokens) == hugging_face_greedy(model, prompt[30:], 8)


def test_running_out_of_memory_halves_the_batch(model: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = some_requests(len(model.tokenizer), 60)
    prompts = [GenerationRequest((number + 5, 7), 6) for number in range(20)]
    model.batch_tokens = 100_000
    scored, written = model.loglikelihoods(requests), model.generate(prompts)
    forward = type(model.model.get_decoder()).forward

    def small_memory(self: object, *arguments: object, **keywords: object) -> object:
        if keywords["input_ids"].numel() > 250:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("pretended")
        return forward(self, *arguments, **keywords)

    monkeypatch.setattr(type(model.model.get_decoder()), "forward", small_memory)
    again = model.loglikelihoods(requests)
    assert [one.logprob for one in again] == pytest.approx([one.logprob for one in scored], abs=1e-4)
    assert model.batch_tokens <= 250
    assert [one.tokens for one in model.generate(prompts)] == [one.tokens for one in written]


def test_an_unloaded_model_says_so(directory: Path) -> None:
    model = HuggingFaceModel(directory, device="cpu", dtype="bfloat16")
    assert next(model.model.parameters()).dtype == torch.bfloat16
    model.unload()
    with pytest.raises(ValueError, match="unloaded"):
        model.loglikelihoods([])
