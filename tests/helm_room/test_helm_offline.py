"""While HELM runs: no network, nothing on standard output, no run without end."""

from __future__ import annotations

import os
import random
import signal
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autoeval.helm.contained import HelmTimeoutError, limited, missing_file, own_randomness, quiet
from autoeval.helm.results import _without_model
from autoeval.offline.environment import offline
from recorder.helm_statistics import Stratum, standard_error


def test_a_download_fails_at_once_and_the_environment_comes_back() -> None:
    before = dict(os.environ)
    with offline():
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        started = time.monotonic()
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen("https://crfm.stanford.edu/data.zip")
        assert time.monotonic() - started < 5  # nobody was asked: an answer that does not come takes longer
    assert dict(os.environ) == before


def test_this_machine_and_a_models_own_host_stay_within_reach() -> None:
    with offline("gpu-7.example.org"):
        assert urllib.request.proxy_bypass("127.0.0.1:8000") and urllib.request.proxy_bypass("localhost")
        assert urllib.request.proxy_bypass("gpu-7.example.org")
        assert not urllib.request.proxy_bypass("crfm.stanford.edu")


def test_prints_do_not_reach_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        print("Looking in path: somewhere")
    assert capsys.readouterr().out == ""


def endless() -> None:
    while True:
        try:
            while True:
                pass
        except Exception:
            continue


def test_an_endless_loop_is_stopped_even_where_exceptions_are_swallowed() -> None:
    with pytest.raises(HelmTimeoutError, match=r"gsm: not finished after 0\.1 s"):
        limited(0.1, "gsm", endless)


def test_the_limit_holds_in_another_thread_too() -> None:
    def run() -> str:
        try:
            limited(0.1, "gsm", endless)
        except HelmTimeoutError as error:
            return str(error)
        return "not stopped"

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run).result(timeout=60).startswith("gsm: not finished after 0.1 s")


def ends_about_when_it_is_late(seconds: float) -> int:
    """How often work that takes just about its limit was late; whatever else the limit raises, passes through."""
    late = 0
    # The last one is late however busy the machine is.
    for share in (*(0.9 + step / 750 for step in range(150)), 500.0):
        until = time.monotonic() + seconds * share

        def work(until: float = until) -> str:
            while time.monotonic() < until:
                pass
            return "done"

        try:
            assert limited(seconds, "gsm", work) == "done"
        except HelmTimeoutError:
            late += 1
    for _ in range(1000):
        pass  # an interruption that is still on its way would arrive here
    return late


def test_work_that_ends_just_when_it_is_late_is_late_or_done_and_nothing_else() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(ends_about_when_it_is_late, 0.004).result(timeout=60) > 0
    assert ends_about_when_it_is_late(0.004) > 0


def test_a_timer_of_somebody_else_goes_on_after_the_limit() -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        assert limited(5, "quick", lambda: 3) == 3
        assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_a_run_neither_sees_nor_disturbs_the_random_numbers_of_others() -> None:
    random.seed(3)
    expected = random.random()
    random.seed(3)
    with own_randomness():
        first = random.random()
    assert random.random() == expected
    with own_randomness():
        assert random.random() == first


def test_the_file_a_scenario_misses_is_found_in_the_failed_download() -> None:
    def ensure_file_downloaded(source_url: str, target_path: str) -> None:
        raise RuntimeError("exit code 4")

    try:
        ensure_file_downloaded("https://example.org/train", "/data/boolq/train")
    except RuntimeError as error:
        assert missing_file(error) == (Path("/data/boolq/train"), "https://example.org/train")
    assert missing_file(RuntimeError("another")) is None


def test_the_standard_error_of_a_macro_average_weighs_every_run_alike() -> None:
    large = Stratum(0.5, {str(i): float(i % 2) for i in range(100)})
    small = Stratum(0.5, {"a": 0.0, "b": 1.0})
    variance = 0.25 * 100 / 99 / 100 / 4 + 0.5 / 2 / 4
    assert standard_error([(large, 0.5), (small, 0.5)]) == pytest.approx(variance**0.5)
    assert standard_error([(Stratum(0.5), 1.0)]) is None  # a corpus-level metric
    assert standard_error([(Stratum(1.0, {"a": 1.0}), 1.0)]) is None  # one item says nothing about the spread


def test_item_keys_do_not_contain_the_model() -> None:
    assert _without_model("mmlu:subject=anatomy,model=autoeval_x") == "mmlu:subject=anatomy"
    assert _without_model("boolq:model=autoeval_x") == "boolq"
    assert _without_model("boolq:model=autoeval_x,groups=a") == "boolq:groups=a"
