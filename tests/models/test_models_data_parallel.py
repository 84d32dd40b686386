"""Several processes answer as one does; the trie's subtrees stay whole."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoeval.models.data_parallel import DataParallelModel
from autoeval.models.hf import HuggingFaceModel
from autoeval.models.loading import load_model
from autoeval.models.requests import GenerationRequest, LoglikelihoodRequest
from autoeval.models.splitting import split
from autoeval.tasks.loaded import LoadedModel
from autoeval.tasks.metering import Meter
from autoeval.tasks.plan import ModelOptions
from tests.tiny_models import save_tiny_model

OPTIONS = ModelOptions(device="cpu", devices=2)
pytestmark = pytest.mark.slow  # processes that import a model library


def subjects(seed: int = 5, count: int = 6) -> list[LoglikelihoodRequest]:
    """Subjects with a head of their own, questions below them, labels below these; mixed."""
    draw = random.Random(seed)

    def tokens(many: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, 290) for _ in range(many))

    found = [LoglikelihoodRequest((), tokens(3)), LoglikelihoodRequest(tokens(200), tokens(2))]
    for head in [tokens(40) for _ in range(count)]:
        for question in [head + tokens(draw.randrange(3, 12)) for _ in range(5)]:
            found += [LoglikelihoodRequest(question, (label, *tokens(label % 3))) for label in range(10, 14)]
    draw.shuffle(found)
    return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("whole"), "llama")


@pytest.fixture(scope="module")
def one(directory: Path) -> HuggingFaceModel:
    return HuggingFaceModel(directory, device="cpu")


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadedModel]:
    model = LoadedModel()
    yield model
    model.drop()


@pytest.fixture(scope="module")
def two(loaded: LoadedModel, directory: Path) -> DataParallelModel:
    model = loaded.load(directory, OPTIONS)
    assert isinstance(model, DataParallelModel)
    return model


def test_scores_are_those_of_one_process(one: HuggingFaceModel, two: DataParallelModel) -> None:
    asked = subjects()
    for here, there in zip(one.loglikelihoods(asked), two.loglikelihoods(asked), strict=True):
        assert list(there.token_logprobs) == pytest.approx(list(here.token_logprobs), abs=2e-5)
        assert (there.is_greedy, there.truncated_tokens) == (here.is_greedy, here.truncated_tokens)
    assert two.loglikelihoods([]) == []
    assert two.loglikelihoods([LoglikelihoodRequest((5,), ())]) == one.loglikelihoods([LoglikelihoodRequest((5,), ())])


def test_texts_are_those_of_one_process(one: HuggingFaceModel, two: DataParallelModel) -> None:
    asked = [GenerationRequest(request.context, 8) for request in subjects()[::5]]
    asked += [GenerationRequest((20, 30), 6, temperature=1.5, seed=seed) for seed in range(4)]
    for here, there in zip(one.generate(asked), two.generate(asked), strict=True):
        assert (there.tokens, there.text, there.finish_reason) == (here.tokens, here.text, here.finish_reason)


def test_costs_are_summed(directory: Path, two: DataParallelModel) -> None:
    one, asked = HuggingFaceModel(directory, device="cpu"), subjects()
    meter, meters = Meter(one), Meter(two)
    one.loglikelihoods(asked)
    two.loglikelihoods(asked)
    here, there = meter.read().cost(), meters.read().cost()
    for name in ("prompt_tokens", "unique_tokens", "generated_tokens", "logit_positions"):
        assert there[name] == here[name], name
    assert here["computed_tokens"] <= there["computed_tokens"] < here["computed_tokens"] + 60  # one cut, in a head
    assert 0 < there["seconds"] <= there["wall_seconds"]
    assert there["device_seconds"] == there["wall_seconds"]  # two processes, one CPU
    assert there["peak_memory_bytes"] > here["peak_memory_bytes"] / 2


def test_the_parts_are_subtrees_of_like_size() -> None:
    asked = subjects(count=8)
    parts, unique = split(asked, 4, prefix=0, window=128)
    assert sorted(number for part in parts for number in part) == list(range(len(asked)))
    heads = [{asked[number].context[:40] for number in part if len(asked[number].context) > 40} for part in parts]
    assert sum(map(len, heads)) <= len(set().union(*heads)) + 1  # at most one head is in two parts
    sizes = [split([asked[number] for number in part], 1, prefix=0, window=128)[1] for part in parts]
    assert max(sizes) < 1.5 * unique / 4
    alike = [LoglikelihoodRequest((1, 2, 3), (label,)) for label in range(8)]
    assert split(alike, 4, prefix=0, window=128) == ([list(range(8))], 3)  # one input is not divided
    assert split([], 4, prefix=0, window=128) == ([], 0)


def test_the_models_own_errors_pass_through(two: DataParallelModel) -> None:
    with pytest.raises(ValueError, match="token id 5000 is outside"):
        two.loglikelihoods([*subjects(), LoglikelihoodRequest((1,), (5000,))])
    with pytest.raises(ValueError, match="does not fit the window"):
        two.loglikelihoods([LoglikelihoodRequest((1,), (2,) * 200)])
    assert two.alive and len(two.loglikelihoods(subjects())) == len(subjects())
    two.batch_tokens = 64
    assert two.batch_tokens == 64


def test_what_cannot_be_loaded_leaves_no_process(tmp_path: Path, directory: Path) -> None:
    import multiprocessing

    broken = Path(shutil.copytree(directory, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"nothing")
    before = {child.pid for child in multiprocessing.active_children()}
    with pytest.raises((OSError, RuntimeError, ValueError)):
        DataParallelModel(broken, devices=["cpu"])
    assert {child.pid for child in multiprocessing.active_children()} <= before
    with pytest.raises(FileNotFoundError, match="no such model directory"):
        load_model(tmp_path / "nowhere", device="cpu", devices=2)
    with pytest.raises(ValueError, match="devices 0"):
        load_model(directory, device="cpu", devices=0)
    with pytest.raises(ValueError, match="device cuda:1 is a single one"):
        load_model(directory, device="cuda:1", devices=2)


def test_one_process_is_the_default_on_a_cpu(directory: Path) -> None:
    assert isinstance(load_model(directory, device="cpu"), HuggingFaceModel)
    gone = HuggingFaceModel(directory, device="cpu")
    assert load_model(directory, device="cpu", devices=1).max_seq_len == gone.max_seq_len


def test_the_next_checkpoints_weights_go_into_the_same_processes(
    loaded: LoadedModel, two: DataParallelModel, directory: Path, tmp_path: Path
) -> None:
    other = save_tiny_model(tmp_path / "other", "llama", seed=1)
    assert loaded.receiver(OPTIONS) is None
    processes = [child.process.pid for child in two._children]
    again = loaded.load(other, OPTIONS)
    assert again is two and [child.process.pid for child in two._children] == processes
    assert two.path == other and not two.cost.computed_tokens
    expected = HuggingFaceModel(other, device="cpu").loglikelihoods(subjects())
    for here, there in zip(expected, two.loglikelihoods(subjects()), strict=True):
        assert list(there.token_logprobs) == pytest.approx(list(here.token_logprobs), abs=2e-5)
    assert not two.renew(save_tiny_model(tmp_path / "another kind", "gpt2"))


def test_a_process_that_dies_is_an_error_that_names_it(loaded: LoadedModel, two: DataParallelModel) -> None:
    """Last: the others' processes."""
    processes = [child.process for child in two._children]
    assert processes[1].pid is not None
    os.kill(processes[1].pid, signal.SIGKILL)
    processes[1].join()
    with pytest.raises(RuntimeError, match="the process that computes on cpu was ended by signal 9"):
        two.loglikelihoods(subjects())
    assert not two.alive and not processes[0].is_alive()
    assert not loaded._may_be_renewed(OPTIONS)  # a dead model is not given weights
    with pytest.raises(ValueError, match="unloaded"):
        two.loglikelihoods(subjects())
