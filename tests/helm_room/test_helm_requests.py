"""HELM's requests, each of their fields, answered as HELM's metrics expect; by a model in this process and by a server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helm_tiny_models import DirectModel

from autoeval.models.hf import HuggingFaceModel
from autoeval.models.requests import GenerationRequest
from autoeval.models.server import CompletionsServer

pytestmark = pytest.mark.slow

PROMPT = "Rules: X + Y = Z | Result:"


@pytest.fixture(scope="module")
def model(tiny_models: tuple[Path, Path]) -> HuggingFaceModel:
    return HuggingFaceModel(tiny_models[0], dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def direct(tiny_models: tuple[Path, Path]) -> DirectModel:
    return DirectModel(tiny_models[0])


def complete(model: Any, **fields: Any) -> list[Any]:
    from helm.common.request import Request

    from autoeval.helm.engine import answer

    (result,) = answer(model, [Request(prompt=PROMPT, **fields)])
    assert result.success and not result.cached
    return result.completions


def test_a_greedy_text_is_that_of_a_plain_loop_with_its_log_probabilities(
    model: HuggingFaceModel, direct: DirectModel
) -> None:
    (completion,) = complete(model, temperature=0, max_tokens=12)
    (wanted,) = direct.generate([GenerationRequest(tuple(direct.tokenizer(PROMPT)["input_ids"]), 12)])
    assert completion.text == wanted.text and len(wanted.tokens) == 12
    assert [token.logprob for token in completion.tokens] == pytest.approx(wanted.token_logprobs, abs=1e-4)
    assert completion.logprob == pytest.approx(sum(wanted.token_logprobs), abs=1e-3)
    assert completion.finish_reason == {"reason": "length"}


def test_a_stop_sequence_ends_the_text_and_is_not_part_of_it(model: HuggingFaceModel) -> None:
    (whole,) = complete(model, temperature=0, max_tokens=12)
    stop = whole.text[5:7]
    (cut,) = complete(model, temperature=0, max_tokens=12, stop_sequences=["never there", stop])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == {"reason": "stop"} and len(cut.tokens) < len(whole.tokens)


def test_max_tokens_is_the_most_that_comes(model: HuggingFaceModel) -> None:
    (short,), (long,) = (complete(model, temperature=0, max_tokens=most) for most in (3, 9))
    assert len(short.tokens) == 3 and len(long.tokens) == 9 and long.text.startswith(short.text)


def test_completions_are_as_many_as_asked_and_greedy_ones_are_computed_once(model: HuggingFaceModel) -> None:
    before = model.cost.generated_tokens
    completions = complete(model, temperature=0, max_tokens=5, num_completions=4)
    assert len(completions) == 4 and len({one.text for one in completions}) == 1
    assert model.cost.generated_tokens - before == 5
    sampled = complete(model, temperature=1.0, max_tokens=8, num_completions=4)
    assert len(sampled) == 4 and len({one.text for one in sampled}) > 1


def test_a_sample_follows_from_prompt_trial_and_number_alone(model: HuggingFaceModel) -> None:
    from helm.common.request import Request

    from autoeval.helm.engine import answer

    request = Request(prompt=PROMPT, temperature=1.0, max_tokens=8, num_completions=2)
    alone = answer(model, [request])[0]
    among = answer(model, [replace(request, prompt="Target: Z"), request, replace(request, random="7")])
    texts = [[one.text for one in result.completions] for result in (alone, *among)]
    assert texts[0] == texts[2] and texts[3] != texts[0]


def test_top_p_keeps_the_likeliest_tokens_only(model: HuggingFaceModel) -> None:
    greedy = complete(model, temperature=0, max_tokens=8)[0].text
    narrow = complete(model, temperature=1.5, top_p=1e-6, max_tokens=8, num_completions=3)
    assert {one.text for one in narrow} == {greedy}  # the smallest set that reaches it is the best token
    wide = complete(model, temperature=1.5, top_p=1.0, max_tokens=8, num_completions=3)
    assert {one.text for one in wide} != {greedy}


def test_an_echoed_prompt_and_what_was_generated_come_together(model: HuggingFaceModel, direct: DirectModel) -> None:
    (completion,) = complete(model, temperature=0, max_tokens=4, echo_prompt=True)
    ids = direct.tokenizer(PROMPT)["input_ids"]
    (wanted,) = direct.generate([GenerationRequest(tuple(ids), 4)])
    rows = direct._logprobs(ids)
    prompt = [0.0, *(float(rows[place - 1][ids[place]]) for place in range(1, len(ids)))]
    assert completion.text == PROMPT + wanted.text == "".join(token.text for token in completion.tokens)
    assert [token.logprob for token in completion.tokens] == pytest.approx([*prompt, *wanted.token_logprobs], abs=1e-4)


def test_prompts_that_begin_alike_are_computed_once(model: HuggingFaceModel) -> None:
    from helm.common.request import Request

    from autoeval.helm.engine import answer

    beginning = "Input: the quick brown fox answers yes or no to a question. " * 8
    for fields in ({"max_tokens": 0, "echo_prompt": True}, {"max_tokens": 1}):
        requests = [Request(prompt=beginning + end, temperature=0, **fields) for end in ("A.", "B.", "C.", "D.")]
        shared, each = (len(model.tokenizer(text)["input_ids"]) for text in (beginning, requests[0].prompt))
        before = model.cost.computed_tokens
        answer(model, requests)
        assert model.cost.computed_tokens - before <= shared + 4 * (each - shared + 1), fields


@pytest.mark.parametrize("fields", [{"embedding": True}, {"messages": [{"role": "user", "content": "x"}]}])
def test_what_a_language_model_cannot_do_is_refused(model: HuggingFaceModel, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="completes text"):
        complete(model, **fields)


class _Server(BaseHTTPRequestHandler):
    """``/v1/completions`` as OpenAI documents it, with ``model`` behind it."""

    model: DirectModel

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ids = body["prompt"]
        request = GenerationRequest(tuple(ids), body["max_tokens"], tuple(body.get("stop", ())))
        (made,) = self.model.generate([request])
        choice: dict[str, Any] = {"index": 0, "text": made.text, "finish_reason": made.finish_reason, "logprobs": None}
        if body.get("echo"):
            rows = self.model._logprobs(ids)
            values = [None, *(float(rows[place - 1][ids[place]]) for place in range(1, len(ids)))]
            tokens = [self.model.tokenizer.decode([token]) for token in ids]
            best = [None, *({"best": float(row.max())} for row in rows[:-1])]
            offsets = [sum(map(len, tokens[:place])) for place in range(len(tokens))]
            choice["logprobs"] = {
                "tokens": tokens,
                "token_logprobs": values,
                "top_logprobs": best,
                "text_offset": offsets,
            }
        content = json.dumps({"choices": [choice], "usage": {}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def base_url(direct: DirectModel) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Server", (_Server,), {"model": direct}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_server_on_this_machine_is_evaluated_though_nothing_else_is_reachable(
    base_url: str, direct: DirectModel, tiny_models: tuple[Path, Path], tmp_path: Path
) -> None:
    from autoeval.helm.run import run_helm_task
    from autoeval.helm.spec import HelmTask

    task = HelmTask(
        "synthetic", "v", ("synthetic_reasoning:mode=induction,eval_split=test,max_train_instances=1",), (), 3
    )
    server = CompletionsServer("m", base_url=base_url, tokenizer_path=tiny_models[0], max_seq_len=512, max_workers=2)
    found = [
        run_helm_task(task, model, model_name=name, output_path=tmp_path, suite="suite")
        for name, model in (("server", server), ("direct", direct))
    ]
    assert found[0].scores == found[1].scores and found[0].items == found[1].items
    texts = [
        [state["result"]["completions"][0]["text"] for state in json.loads(path.read_text())["request_states"]]
        for path in sorted((tmp_path / "runs" / "suite").glob("*/scenario_state.json"))
    ]
    assert texts[0] == texts[1] and any(texts[0])
    ranked = complete(server, temperature=0, max_tokens=0, echo_prompt=True)
    expected = complete(direct, temperature=0, max_tokens=0, echo_prompt=True)
    assert [token.logprob for token in ranked[0].tokens] == pytest.approx(
        [t.logprob for t in expected[0].tokens], abs=1e-4
    )


def test_nothing_is_ranked_by_log_probabilities_that_a_server_does_not_tell(
    base_url: str, tiny_models: tuple[Path, Path], direct: DirectModel
) -> None:
    from helm.common.request import Request

    from autoeval.helm.engine import answer

    server = CompletionsServer("m", base_url=base_url, tokenizer_path=tiny_models[0], max_seq_len=512)
    requests = [Request(prompt=PROMPT, temperature=0, max_tokens=2)]
    assert [token.logprob for token in answer(server, requests)[0].completions[0].tokens] == [0.0, 0.0]
    with pytest.raises(ValueError, match="ranks by the log-probabilities"):
        answer(server, requests, needs_logprobs=True)
    assert answer(direct, requests, needs_logprobs=True)[0].completions[0].logprob < 0


def test_a_server_whose_tokens_are_not_known_is_refused(base_url: str, tmp_path: Path) -> None:
    from autoeval.helm.run import run_helm_task
    from autoeval.helm.spec import HelmTask

    task = HelmTask("dyck", "v", ("dyck_language:num_parenthesis_pairs=3",), (), 3)
    with pytest.raises(ValueError, match="tokenizer_path"):
        run_helm_task(
            task, CompletionsServer("m", base_url=base_url), model_name="s", output_path=tmp_path, suite="suite"
        )
