"""Files that autoeval writes, and what another user of the machine could make of them."""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoeval.openicl import sandbox
from autoeval.storage.store import _relative
from recorder.files import write_atomic

HOME = Path(__file__).resolve().parents[2]


def test_a_link_in_a_files_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "report.html").symlink_to(precious)
    write_atomic(tmp_path / "report.html", "new")
    assert precious.read_text() == "mine" and not (tmp_path / "report.html").is_symlink()


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o027, 0o640)])
def test_the_umask_decides_who_may_read(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "x", "y")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode


def test_temporary_files_are_ones_own_and_have_no_name_to_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen at the moment of the rename."""
    seen: list[tuple[str, int]] = []
    rename = Path.replace

    def looked_at(path: Path, target: Path) -> Path:
        seen.append((path.name, path.stat().st_uid))
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", looked_at)
    for _ in range(2):
        write_atomic(tmp_path / "x", "y")
    (first, owner), (second, _) = seen
    assert first != second and first.startswith(".x.") and first.endswith(".tmp") and owner == os.geteuid()


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a//b", ".", "..\\x", "a\0b", "a/./b"])
def test_an_objects_key_names_no_place_outside_of_the_copy(key: str) -> None:
    """In a bucket anything may be a key; what leads elsewhere is not listed, so it is not copied."""
    assert _relative(f"bucket/run/{key}", "bucket/run") is None
    assert _relative("bucket/run/iter_0000001/a.distcp", "bucket/run") == "iter_0000001/a.distcp"


@pytest.mark.slow
def test_jiebas_cache_is_not_the_one_that_anybody_may_have_put_into_tmp(tmp_path: Path) -> None:
    """Its marshalled frequencies decide how a text is cut; jieba believes whatever is at that place."""
    (tmp_path / "jieba.cache").write_bytes(marshal.dumps(({"我们": 0, "测试": 10**9}, 10**9)))
    code = "from autoeval.openicl.chinese import jieba; print(jieba().dt.tmp_dir, list(jieba().cut('我们测试')))"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "AUTOEVAL_CACHE": str(tmp_path / "ours")}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=HOME, env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert ran.stdout.split(maxsplit=1) == [str(tmp_path / "ours" / "jieba"), "['我们', '测试']\n"], (
        ran.stdout + ran.stderr
    )
    assert (tmp_path / "ours" / "jieba").stat().st_mode & 0o077 == 0 and (
        tmp_path / "ours" / "jieba" / "jieba.cache"
    ).exists()


def test_the_sandbox_is_given_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where it would be hidden again: the shell that makes the namespaces does not have it either."""
    given: dict[str, str] = {}
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    monkeypatch.setenv("LD_PRELOAD", "/tmp/evil.so")

    class Stopped(Exception):
        pass

    def popen(*_: object, env: dict[str, str], **__: object) -> None:
        given.update(env)
        raise Stopped

    monkeypatch.setattr(sandbox.subprocess, "Popen", popen)
    with pytest.raises(Stopped):
        sandbox._run("pass", sandbox.Limits())
    assert set(given) == {"PATH", "SANDBOX_RUNNER", "SANDBOX_DISK"} and "hunter2" not in "".join(given.values())
