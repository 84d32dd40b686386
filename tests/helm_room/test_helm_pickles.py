"""HELM unpickles two of its data files: what is more than data is refused before HELM opens it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from autoeval.helm.pickles import UnsafePickleError, refuse_unsafe_pickles


class Evil:
    """A pickle of this creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class Elsewhere:
    """Pickled by a reference outside the pickle."""


class _Referring(pickle.Pickler):
    def persistent_id(self, obj: object) -> str | None:
        return "elsewhere" if isinstance(obj, Elsewhere) else None


DATA = {
    "train": [{"document": "a", "summary": "b"}],
    "validation": [],
    "test": [{"n": 1.5, "t": (1, None, True, b"x")}],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_passes_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    data = DATA if protocol > 2 else {**DATA, "test": []}  # before protocol 3 bytes are a call
    (tmp_path / "xsum.pk").write_bytes(pickle.dumps(data, protocol=protocol))
    refuse_unsafe_pickles(tmp_path)
    refuse_unsafe_pickles(tmp_path / "not there")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_something_is_refused_and_nothing_is_called(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / "data" / "xsum.pk"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({"train": [Evil(mark)]}, protocol=protocol))
    with pytest.raises(
        UnsafePickleError, match=r"xsum\.pk: not opened.*it asks for .*expected a pickle of dictionaries"
    ):
        refuse_unsafe_pickles(tmp_path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # noqa: S301 - ours; it is as bad as it should be
    assert mark.exists()


def test_references_broken_files_and_other_endings(tmp_path: Path) -> None:
    with (tmp_path / "a.pickle").open("wb") as stream:
        _Referring(stream).dump([Elsewhere()])
    with pytest.raises(UnsafePickleError, match=r"a\.pickle.*refers to objects outside"):
        refuse_unsafe_pickles(tmp_path)
    (tmp_path / "a.pickle").write_bytes(b"\x80\x04\x95\xff")
    with pytest.raises(UnsafePickleError, match=r"a\.pickle"):
        refuse_unsafe_pickles(tmp_path)
    (tmp_path / "a.pickle").rename(tmp_path / "a.txt")
    refuse_unsafe_pickles(tmp_path)


@pytest.mark.slow
def test_a_scenario_with_such_a_file_fails_alone_and_says_why(tiny_models: tuple[Path, Path], tmp_path: Path) -> None:
    from helm_tiny_models import DirectModel

    from autoeval.helm.run import HelmRunError, run_helm_task
    from autoeval.helm.spec import HelmTask

    path = tmp_path / "scenarios" / "summarization" / "data" / "xsum.pk"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps({"train": [Evil(tmp_path / "ran")], "validation": [], "test": []}))
    entries = ("summarization_xsum:temperature=0.3,device=cpu",)
    with pytest.raises(HelmRunError, match=r"1 of 1 .*xsum\.pk: not opened"):
        run_helm_task(
            HelmTask("summarization_xsum", "v", entries, (), 2), DirectModel(tiny_models[0]),
            model_name="x", output_path=tmp_path, suite="suite",
        )  # fmt: skip
    assert not (tmp_path / "ran").exists()
