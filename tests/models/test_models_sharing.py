"""Every distinct token is computed once, and nobody can tell from the answers."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import autoeval.models.continuous
import autoeval.models.memory
import autoeval.models.stems
from autoeval.models.attention import State
from autoeval.models.hf import HuggingFaceModel
from autoeval.models.requests import GenerationRequest, LoglikelihoodRequest
from autoeval.models.stems import stems_of
from autoeval.models.trie import Walk, key_of
from tests.tiny_models import save_tiny_tokenizer

ENDS = {"bos_token_id": 0, "eos_token_id": 1}
LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    **ENDS,
}
ROPE = {"rope_theta": 10000.0}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
LONG = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 32}
EXPERTS = {"num_experts_per_tok": 2}


def rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "factor": 4.0, **ROPE, **options}}


# name: (model type, its configuration, whether it can walk a trie)
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **LLAMA_LIKE}, True),
    "llama": ("llama", LLAMA_LIKE, True),
    "llama, linear rope": ("llama", {**LLAMA_LIKE, **rope("linear")}, True),
    "llama, llama3 rope": ("llama", {**LLAMA_LIKE, **rope("llama3", **LLAMA3)}, True),
    "llama, yarn": ("llama", {**LLAMA_LIKE, **rope("yarn", original_max_position_embeddings=32)}, True),
    "qwen2": ("qwen2", LLAMA_LIKE, True),
    "qwen3": ("qwen3", {**LLAMA_LIKE, "head_dim": 8}, True),
    "mistral, sliding window": ("mistral", {**LLAMA_LIKE, "sliding_window": 16}, True),
    "mixtral": ("mixtral", {**LLAMA_LIKE, **EXPERTS, "num_local_experts": 4}, True),
    "qwen3_moe": (
        "qwen3_moe",
        {**LLAMA_LIKE, **EXPERTS, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 32},
        True,
    ),
    "gpt_neox": ("gpt_neox", {k: v for k, v in LLAMA_LIKE.items() if k != "num_key_value_heads"}, True),
    "gemma2": ("gemma2", {**LLAMA_LIKE, "head_dim": 8, "sliding_window": 16}, True),
    "bloom": ("bloom", {**LLAMA_LIKE, "n_layer": 2, "n_head": 4}, False),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 300, "max_seq_len": 128, **ENDS}, False),
    "gptj": (
        "gptj",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128, "vocab_size": 300, **ENDS},
        False,
    ),
    "phi3, longrope": ("phi3", {**LLAMA_LIKE, **rope("longrope", **LONG)}, False),
}


def load(name: str, directory: Path, **options: Any) -> HuggingFaceModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, settings, _ = MODELS[name]
    save_tiny_tokenizer(directory)
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    made.save_pretrained(directory)
    return HuggingFaceModel(directory, device="cpu", max_seq_len=128, **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceModel:
    return load("llama", tmp_path_factory.mktemp("llama"))


def tokens(draw: random.Random, length: int) -> tuple[int, ...]:
    return tuple(draw.randrange(2, 290) for _ in range(length))


def subjects(shots: int = 40, own: int = 9, items: int = 4) -> list[LoglikelihoodRequest]:
    """Two subjects of five-shot questions with four one-token labels, and their questions with longer choices."""
    draw = random.Random(2)
    asked = []
    for _ in range(2):
        head = tokens(draw, shots)
        for _ in range(items):
            question = head + tokens(draw, draw.randrange(1, own))
            asked += [LoglikelihoodRequest(question, (label,)) for label in (10, 11, 12, 13)]
            asked += [LoglikelihoodRequest(question, tokens(draw, draw.randrange(2, 7))) for _ in range(4)]
    return asked


def naive(model: HuggingFaceModel, request: LoglikelihoodRequest) -> tuple[list[float], bool]:
    """The whole model on one request alone."""
    text = request.context + request.continuation
    with torch.no_grad():
        table = model.model(torch.tensor([text])).logits[0].float().log_softmax(-1)
    said = torch.tensor(request.continuation)
    rows = table[len(request.context) - 1 : len(text) - 1]
    return rows[torch.arange(len(said)), said].tolist(), bool((rows.argmax(-1) == said).all())


def naive_text(model: HuggingFaceModel, request: GenerationRequest) -> list[int]:
    """``model.generate`` of one prompt alone."""
    prompt = torch.tensor([request.prompt])
    made = model.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return [token for token in made[0, len(request.prompt) :].tolist() if token not in model.stop_ids]


def distinct(inputs: Sequence[tuple[int, ...]]) -> int:
    """Nodes of the token trie, counted by their prefixes."""
    return len({one[:end] for one in inputs for end in range(1, len(one) + 1)})


@pytest.mark.parametrize("name", list(MODELS))
def test_answers_are_those_of_one_request_at_a_time(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="autoeval.models"):
        model = load(name, tmp_path, batch_tokens=50)
    shares = MODELS[name][2]
    assert ("plain batches: " in caplog.text) is not shares
    asked = subjects()
    expected = [naive(model, request) for request in asked]
    results = model.loglikelihoods(asked)
    for (logprobs, greedy), result in zip(expected, results, strict=True):
        assert list(result.token_logprobs) == pytest.approx(logprobs, abs=1e-4)
        assert result.is_greedy == greedy
    for start in range(0, len(asked), 4):  # the choice that an evaluation takes
        totals = [[sum(logprobs) for logprobs, _ in expected], [result.logprob for result in results]]
        best = [max(range(start, start + 4), key=own.__getitem__) for own in totals]
        assert best[0] == best[1]
    nodes = distinct([request.context + request.continuation[:-1] for request in asked])
    assert model.cost.extra["unique_tokens"] == nodes
    assert (model.cost.computed_tokens == nodes) is shares
    prompts = [GenerationRequest(request.context, 3 + number % 5) for number, request in enumerate(asked[::4])]
    prompts.append(GenerationRequest((7,), 20))  # a far shorter text beside the others
    for request, made in zip(prompts, model.generate(prompts), strict=True):
        assert list(made.tokens) == naive_text(model, request)


def test_neither_order_nor_budget_changes_an_answer(model: HuggingFaceModel) -> None:
    asked = subjects()
    prompts = [GenerationRequest(request.context, 6) for request in asked[::4]]
    model.batch_tokens = 1024
    scored, written = model.loglikelihoods(asked), model.generate(prompts)
    for budget in (3, 64, 100_000):
        model.batch_tokens = budget
        places = list(range(len(asked)))
        random.Random(budget).shuffle(places)
        again = model.loglikelihoods([asked[place] for place in places])
        for place, result in zip(places, again, strict=True):
            assert list(result.token_logprobs) == pytest.approx(list(scored[place].token_logprobs), abs=1e-5)
            assert result.is_greedy == scored[place].is_greedy
        assert [one.tokens for one in model.generate(prompts[::-1])][::-1] == [one.tokens for one in written]


@pytest.mark.parametrize(
    ("shape", "requests"),
    [
        ("five-shot labels", [one for one in subjects(90, 20, 10) if len(one.continuation) == 1]),
        ("endings", [one for one in subjects(0, 25, 10) if len(one.continuation) > 1]),
    ],
)
def test_forwarded_tokens_are_the_tries_and_logits_the_needed(
    shape: str, requests: list[LoglikelihoodRequest], model: HuggingFaceModel
) -> None:
    """The noise-free gate of issue 9, with both sides counted by the test."""
    model.batch_tokens = 200
    forwarded, projected = 0, set()
    hooks = [
        model.model.get_decoder().register_forward_pre_hook(
            lambda _module, _arguments, named: counted(named["input_ids"].numel()), with_kwargs=True
        )
    ]

    def counted(number: int) -> None:
        nonlocal forwarded
        forwarded += number

    before = model.cost.extra.get("logit_positions", 0)
    try:
        model.loglikelihoods(requests)
    finally:
        for hook in hooks:
            hook.remove()
    for request in requests:
        text = request.context + request.continuation
        projected |= {text[:end] for end in range(len(request.context), len(text))}
    assert forwarded <= 1.05 * distinct([one.context + one.continuation[:-1] for one in requests])
    assert model.cost.extra["logit_positions"] - before == len(projected)


def test_generation_computes_a_shared_prompt_once(model: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(5)
    head = tokens(draw, 50)
    prompts = [GenerationRequest(head + tokens(draw, 1 + number % 4), 1 + number % 9) for number in range(12)]
    prompts += [prompts[3]] * 5  # asked more often than there are slots
    model.batch_tokens = 64
    monkeypatch.setitem(autoeval.models.continuous.SLOTS, "cpu", 4)
    before = (model.cost.computed_tokens, model.cost.generated_tokens)
    made = model.generate(prompts)
    computed, generated = model.cost.computed_tokens - before[0], model.cost.generated_tokens - before[1]
    assert [list(one.tokens) for one in made] == [naive_text(model, request) for request in prompts]
    # every text's first token comes from its prompt; the prompt asked too often is walked twice
    again = len(prompts[3].prompt)
    assert computed == distinct([one.prompt for one in prompts]) + again + generated - len(prompts)


def test_the_stem_of_many_texts_is_read_once(model: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in two parts, joined by their log-sums, gives the texts of attention in one; slots have the rest."""
    draw = random.Random(7)
    heads = [tokens(draw, 40), tokens(draw, 60)]
    prompts = [
        GenerationRequest(heads[number % 2] + tokens(draw, 1 + number % 6), 2 + number % 7) for number in range(24)
    ]
    prompts += [prompts[5]] * 3 + [GenerationRequest(heads[1], 9), GenerationRequest((9, 9), 9)]
    model.batch_tokens = 128
    slots, stems = [], []
    attend = State._attend_growing

    def seen(self: State, layer: Any, *others: Any) -> None:
        slots.append(max(layer.slots))
        stems.append({number: keys.shape[2] for number, (keys, _) in layer.stems.items()})
        attend(self, layer, *others)

    monkeypatch.setattr(State, "_attend_growing", seen)
    made = model.generate(prompts)
    assert [list(one.tokens) for one in made] == [naive_text(model, request) for request in prompts]
    assert max(slots) < 32  # not one of them holds a head
    assert {length for some in stems for length in some.values()} == {40, 60}
    assert stems[-1] != stems[len(stems) // 2] or len(stems[-1]) < 2  # they go with their last text


def stems_by_definition(rows: list[tuple[int, ...]], texts: list[int], depth: int) -> int:
    """The most tokens that can be saved below a node of the trie: by one group of all, or by those below each child."""
    children: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        children.setdefault(row[: depth + 1], []).append(number)
    together = (sum(texts) - 1) * depth
    below = [
        stems_by_definition([rows[n] for n in some], [texts[n] for n in some], depth + 1)
        for prefix, some in children.items()
        if len(prefix) > depth
    ]
    return max(together if together >= autoeval.models.stems.WORTH else 0, sum(below))


def test_stems_save_as_much_as_groups_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoeval.models.stems, "WORTH", 4)
    draw = random.Random(8)
    for _ in range(60):
        rows = sorted({tuple(draw.randrange(2) for _ in range(draw.randrange(1, 9))) for _ in range(7)})
        walk = Walk([key_of(row) for row in rows])
        texts = [draw.randrange(1, 4) for _ in rows]
        found = stems_of(walk, texts)
        saved = 0
        for stem in {one for one in found if one is not None}:
            members = [number for number, one in enumerate(found) if one == stem]
            assert len({tuple(walk.rows[number][: stem.length]) for number in members}) == 1
            saved += (sum(texts[number] for number in members) - 1) * stem.length
        assert saved == stems_by_definition([tuple(row.tolist()) for row in walk.rows], texts, 0)


def test_one_generated_token_costs_no_more_than_a_score(model: HuggingFaceModel) -> None:
    """HELM asks multiple choice as one token after a few-shot prompt: the same passes, one logit row a prompt."""
    draw = random.Random(9)
    head = tokens(draw, 60)
    questions = list(dict.fromkeys(head + tokens(draw, 2 + number % 9) for number in range(300)))
    costs, passes = [], []
    hook = model.model.get_decoder().register_forward_pre_hook(lambda *_: passes.append(1))
    model.batch_tokens = 128
    try:
        for ask in (
            lambda: model.generate([GenerationRequest(one, 1) for one in questions]),
            lambda: model.loglikelihoods([LoglikelihoodRequest(one, (7,)) for one in questions]),
        ):
            before = (model.cost.computed_tokens, model.cost.extra.get("logit_positions", 0))
            passes.clear()
            answers = ask()
            after = (model.cost.computed_tokens, model.cost.extra["logit_positions"])
            costs.append((*(b - a for a, b in zip(before, after, strict=True)), len(passes)))
    finally:
        hook.remove()
    assert costs[0] == costs[1]
    assert len(answers) == len(questions) > 250


def test_a_text_that_ends_makes_room_in_the_next_pass(model: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(6)
    prompts = [GenerationRequest(tokens(draw, 6), 20 if number == 0 else 4) for number in range(9)]
    prompts[0] = GenerationRequest((0, 0, 0), 20)  # walked first
    kept, model.stop_ids = model.stop_ids, frozenset()
    monkeypatch.setitem(autoeval.models.continuous.SLOTS, "cpu", 3)
    model.batch_tokens = 1024
    passes = []
    hook = model.model.get_decoder().register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        model.generate(prompts)
    finally:
        hook.remove()
        model.stop_ids = kept
    # Two slots beside the long text serve eight texts of four tokens: 16 passes, all while the long one is written.
    assert len(passes) == 20


def test_running_out_of_memory_in_the_middle_of_a_walk_loses_nothing(
    model: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = subjects()
    model.batch_tokens = 1024
    expected = model.loglikelihoods(asked)
    layer = type(model.model.get_decoder().layers[1])
    forward, calls = layer.forward, []

    def fails_late(self: Any, hidden: torch.Tensor, **named: Any) -> Any:
        calls.append(hidden.shape[1])
        if len(calls) in (6, 14):  # the second layer of a later pass: the first has already written over its path
            raise torch.OutOfMemoryError("pretended")
        return forward(self, hidden, **named)

    monkeypatch.setattr(layer, "forward", fails_late)
    model.batch_tokens = 60
    again = model.loglikelihoods(asked)
    assert model.batch_tokens <= 15  # twice halved
    assert [one.logprob for one in again] == pytest.approx([one.logprob for one in expected], abs=1e-5)
    calls.clear()
    prompts = [GenerationRequest(request.context, 5) for request in asked[::4]]
    model.batch_tokens = 64
    assert [list(one.tokens) for one in model.generate(prompts)] == [naive_text(model, one) for one in prompts]
    assert model.batch_tokens < 64


def test_passes_and_slots_fit_the_memory_that_is_free(model: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    network = model._network
    needs = autoeval.models.memory.pass_bytes(network, 100, 64)
    assert autoeval.models.memory.pass_bytes(network, 200, 64) > needs
    monkeypatch.setattr(autoeval.models.memory, "free_bytes", lambda device: needs)
    assert autoeval.models.memory.tokens_within(network, 100, 64) == 100
    assert autoeval.models.memory.tokens_within(network, 102, 64) == 51
    # two layers, two key-value heads of 8, fp32, keys and values
    assert network.shape.cache_bytes == 2 * 2 * 2 * 8 * 4
    monkeypatch.setattr(autoeval.models.memory, "free_bytes", lambda device: 2 * 8 * 100 * network.shape.cache_bytes)
    assert autoeval.models.memory.slots_within(network, {100: 500}, 64) == 8
    assert autoeval.models.memory.slots_within(network, {100: 4, 50: 8}, 64) == 64


def test_the_models_own_attention_is_back_afterwards(model: HuggingFaceModel) -> None:
    before = model.model.config._attn_implementation
    model.loglikelihoods(subjects())
    assert model.model.config._attn_implementation == before
    with pytest.raises(ValueError, match="outside the model's vocabulary"):
        model.loglikelihoods([LoglikelihoodRequest((1,), (5000,))])
    assert model.model.config._attn_implementation == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_scores(tmp_path: Path) -> None:
    model = load("llama", tmp_path)
    there = HuggingFaceModel(tmp_path, device="cuda", dtype="float32", max_seq_len=128)
    asked = subjects()
    for here, far in zip(model.loglikelihoods(asked), there.loglikelihoods(asked), strict=True):
        assert list(far.token_logprobs) == pytest.approx(list(here.token_logprobs), abs=1e-3)
    prompts = [GenerationRequest(request.context, 6) for request in asked[::4]]
    assert [one.tokens for one in there.generate(prompts)] == [one.tokens for one in model.generate(prompts)]
