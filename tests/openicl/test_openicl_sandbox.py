"""What a model writes is run where it can do no harm: every way out is tried, and seen closed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from autoeval.datasets.rows import Row
from autoeval.openicl import sandbox
from autoeval.openicl.code_metrics import HumanEvalEvaluator, pass_at_k, program_of
from autoeval.openicl.evaluators import build_evaluator
from autoeval.openicl.sandbox import Limits, NoIsolation, isolation_problem, run_isolated

isolated = pytest.mark.skipif(isolation_problem() is not None, reason=f"no isolation here: {isolation_problem()}")
QUICK = Limits(seconds=10, cpu_seconds=1, memory=512 << 20, processes=6, disk=1 << 20)


def refused(program: str, word: str) -> None:
    """``program`` must not come to its end, for the reason that ``word`` names."""
    ran = run_isolated(program, QUICK)
    assert not ran.finished and word in ran.output, ran


@isolated
def test_a_program_that_behaves_runs() -> None:
    ran = run_isolated("import math, typing, re\nassert math.gcd(4, 6) == 2\nopen('/tmp/x', 'w').write('y')", QUICK)
    assert ran.finished and not ran.timed_out
    assert run_isolated("import os\nassert os.listdir('/tmp') == []", QUICK).finished, "each has a directory of its own"
    assert not run_isolated("assert 1 == 2", QUICK).finished


@isolated
def test_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reached: list[object] = []
        threading.Thread(target=lambda: reached.append(server.accept()), daemon=True).start()
        refused(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)", "Network is unreachable")
        assert not reached
    refused("import socket\nsocket.getaddrinfo('example.org', 80)", "gaierror")


@isolated
def test_no_files_but_its_own(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    refused(f"open({str(secret)!r}).read()", "FileNotFoundError")
    for path in ("/etc/passwd", str(Path(__file__).resolve()), f"/proc/{os.getpid()}/environ"):
        refused(f"open({path!r}).read()", "FileNotFoundError")
    refused("open('/usr/x', 'w')", "Read-only file system")
    refused("open('/x', 'w')", "Read-only file system")
    refused("import os\nos.chroot('/tmp')", "Operation not permitted")
    refused("import os\nos.setuid(0)", "Operation not permitted")
    refused(
        "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.mount(b'none', b'/tmp', b'tmpfs', 0, 0) == 0", "Assert"
    )
    refused("import os\nassert 'SECRET' in os.environ", "AssertionError")


@isolated
def test_no_other_processes() -> None:
    refused(f"import os\nos.kill({os.getpid()}, 9)", "ProcessLookupError")
    program = "import os\nassert [n for n in os.listdir('/proc') if n.isdigit()] == [str(os.getpid())]"
    assert run_isolated(program, QUICK).finished


@isolated
def test_limits_of_memory_time_processes_and_files() -> None:
    refused("x = bytearray(1 << 30)", "MemoryError")
    refused("open('/tmp/x', 'wb').write(b'x' * (8 << 20))", "File too large")
    fork = "import os, time\nwhile True:\n    if os.fork() == 0:\n        time.sleep(60)\n        os._exit(0)\n"
    refused(fork, "Resource temporarily unavailable")
    started = time.monotonic()
    assert not run_isolated("while True:\n    pass", Limits(seconds=30, cpu_seconds=1)).finished
    sleeping = run_isolated("import time\ntime.sleep(60)", Limits(seconds=1))
    assert sleeping.timed_out and time.monotonic() - started < 25
    refused(
        "open('/tmp/x', 'w').write('#!/bin/sh\\n')\nimport os\nos.chmod('/tmp/x', 0o755)\nos.execv('/tmp/x', ['x'])",
        "denied",
    )


@isolated
def test_leaving_early_is_not_passing() -> None:
    for early in ("import os\nos._exit(0)", "raise SystemExit(0)", "import sys\nsys.stdout.close()\nsys.exit()"):
        assert not run_isolated(early, QUICK).finished


def test_nothing_is_run_without_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "TOOLS", ("no-such-tool",))
    isolation_problem.cache_clear()
    try:
        with pytest.raises(NoIsolation, match="not run on this machine: no-such-tool"):
            run_isolated("print(1)")
    finally:
        isolation_problem.cache_clear()


ROW = Row(
    {
        "prompt": 'def add(a, b):\n    """The sum."""\n',
        "entry_point": "add",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    },
    "f:1",
)


@isolated
def test_pass_at_k_of_completions() -> None:
    with pytest.raises(ValueError, match="--allow-code-execution"):
        build_evaluator({"type": "HumanEvaluator"}).score([["    return a + b\n"]], [ROW])
    with pytest.raises(ValueError, match="belongs to whoever runs it"):
        build_evaluator({"type": "HumanEvaluator", "allow_code_execution": True})
    evaluator = build_evaluator({"type": "HumanEvaluator", "k": [1, 2]}, allow_code_execution=True)
    assert isinstance(evaluator, HumanEvalEvaluator)
    good, bad = "    return a + b\n", "    return a - b\n"
    one, two = evaluator.score([[good, bad], [bad, bad], [good, good]], [ROW] * 3)
    assert (one.name, one.values) == ("pass@1", (0.5, 0.0, 1.0))
    assert (two.name, two.values) == ("pass@2", (1.0, 0.0, 1.0))
    assert one.stderr == pytest.approx((0.25 / 3) ** 0.5)


def test_the_estimate_of_pass_at_k_is_unbiased() -> None:
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)
    assert pass_at_k(4, 4, 3) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "    return a + b\n\n\ndef other():\n    return 0\n",
        "return a + b",
        "if a:\n    return a + b\nreturn b",
        "Sure!\n```python\ndef add(a, b):\n    return a + b\n```\nDone.",
        "def add(a, b):\n    return a + b\n",
        "    x = a\n    return x + b\nprint(add(1, 2))",
    ],
)
def test_completions_of_all_kinds_make_the_function(text: str) -> None:
    space: dict[str, object] = {}
    exec(program_of(ROW["prompt"], text, "add"), space)
    assert space["add"](1, 2) == 3  # type: ignore[operator]


PYTHON = Path("/usr/bin/python3")


@isolated
@pytest.mark.skipif(os.geteuid() != 0 or not PYTHON.exists(), reason="needs root to become nobody, and a system Python")
def test_a_user_without_privileges_gets_the_same_isolation() -> None:
    if subprocess.run([PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 10))"], check=False).returncode:
        pytest.skip(f"{PYTHON} is too old")
    code = (
        "from sandbox import isolation_problem, run_isolated, Limits\n"
        "print(isolation_problem(), run_isolated('import math').finished,"
        " run_isolated('open(\"/etc/passwd\")').finished,"
        " run_isolated('import os\\nwhile True: os.fork() or os.pause()', Limits(seconds=5)).finished)"
    )
    directory = Path(tempfile.mkdtemp(prefix="unprivileged-"))  # pytest's own directories are for root alone
    try:
        directory.chmod(0o755)
        shutil.copy(sandbox.__file__, directory / "sandbox.py")
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        ran = subprocess.run([*nobody, PYTHON, "-B", "-c", code], cwd=directory, capture_output=True, text=True)
    finally:
        shutil.rmtree(directory)
    assert ran.stdout.split() == ["None", "True", "False", "False"], ran.stdout + ran.stderr
