"""--offline: every way out of a process is refused and written down, and an evaluation is shown to need none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autoeval.offline.watched import (
    attempts,
    guard_environment,
    guarded_processes,
    namespace_command,
    unroutable,
)
from tests.end_to_end.daemon_world import CONFIG, DATASET

HOME = Path(__file__).resolve().parents[2]

# Each line is tried by itself; what it raises is printed.
TRIES = {
    "connect": "socket.create_connection(('93.184.216.34', 80), timeout=2)",
    "name": "socket.getaddrinfo('huggingface.co', 443)",
    "old_name": "socket.gethostbyname('huggingface.co')",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))",
    "udp_connect": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('8.8.8.8', 80))",
    "ipv6": "socket.socket(socket.AF_INET6).connect(('2606:2800:220:1::1', 80, 0, 0))",
    "urllib": "urllib.request.urlopen('https://example.com/data.zip', timeout=2)",
    "wget": "subprocess.run(['wget', '-q', 'https://example.com/x'])",
    "shell": "os.system('curl -s http://example.com')",
    "git": "subprocess.run(['git', 'clone', 'https://example.com/r.git'])",
    "child": "subprocess.run([sys.executable, '-c', 'import socket; socket.gethostbyname(\"example.org\")'], check=True)",
    "proxy": "socket.create_connection(('127.0.0.1', 9), timeout=2)",
}
ALLOWED = {
    "loopback": "(s := socket.create_server(('127.0.0.1', 0)), socket.create_connection(s.getsockname(), timeout=5))",
    "localhost": "socket.getaddrinfo('localhost', 80)",
    "own_name": "socket.gethostname()",
    "unix": "socket.socketpair()",
    "local_git": "subprocess.run(['git', '--version'], stdout=subprocess.DEVNULL, check=True)",
    "file": "urllib.request.urlopen('file:///etc/hostname')",
}


def run(tmp_path: Path, lines: dict[str, str], *prefix: str) -> tuple[dict[str, str], Path]:
    """What each line raised (``-``: nothing), and the guard's log."""
    program = ["import json, os, socket, subprocess, sys, urllib.request", "told = {}"]
    for name, line in lines.items():
        program += ["try:", f"    {line}", f"    told[{name!r}] = '-'"]
        program += ["except BaseException as error:", f"    told[{name!r}] = f'{{type(error).__name__}}: {{error}}'"]
    script = tmp_path / "tries.py"
    script.write_text("\n".join([*program, "print(json.dumps(told))"]))
    log = tmp_path / "attempts.jsonl"
    environment = guard_environment({**os.environ, "PYTHONPATH": str(HOME)}, log)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        environment.pop(name, None)
        environment.pop(name.upper(), None)
    command = [*prefix, sys.executable, str(script)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), log


def test_every_way_out_is_refused_and_written_down_with_who_tried(tmp_path: Path) -> None:
    told, log = run(tmp_path, TRIES)
    assert all(answer != "-" for answer in told.values()), told
    found = attempts(log)
    seen = {(one.kind, one.address) for one in found}
    assert {kind for kind, _ in seen} == {"name lookup", "connect", "sendto", "request", "program", "proxy"}
    for address in ("93.184.216.34", "huggingface.co", "8.8.8.8:53", "https://example.com/data.zip", "wget -q https://example.com/x", "curl -s http://example.com", "git clone https://example.com/r.git", "example.org"):  # fmt: skip
        assert address in {address for _, address in seen}, address
    assert all("tries.py" in one.where[0] for one in found if one.address != "example.org")
    assert len({one.pid for one in found}) == 2  # the child too
    assert len(guarded_processes(log)) == 2


def test_this_machine_itself_stays_within_reach(tmp_path: Path) -> None:
    told, log = run(tmp_path, ALLOWED)
    assert set(told.values()) == {"-"}, told
    assert attempts(log) == []


def test_in_a_network_namespace_nothing_gets_out_whatever_it_is_written_in(tmp_path: Path) -> None:
    """A C library called directly is not seen by the guard; the kernel counts it."""
    if not namespace_command():
        pytest.skip("network namespaces are not permitted here")
    code = (
        "import ctypes, struct, sys\nc = ctypes.CDLL(None, use_errno=True)\nf = c.socket(2, 1, 0)\n"
        "address = struct.pack('=H', 2) + struct.pack('!HI', 80, 0x5db8d822) + bytes(8)\n"
        "print(c.connect(f, address, len(address)), ctypes.get_errno(), flush=True)\nsys.stdin.read()"
    )
    log = tmp_path / "attempts.jsonl"
    environment = guard_environment({**os.environ, "PYTHONPATH": str(HOME)}, log)
    command = [*namespace_command(), sys.executable, "-c", code]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split() == ["-1", "101"]  # ENETUNREACH
        assert unroutable(process.pid) == 1
        process.communicate()
    assert attempts(log) == []
    told, _ = run(tmp_path, {"loopback": ALLOWED["loopback"]}, *namespace_command())
    assert told == {"loopback": "-"}


def test_another_sitecustomize_of_the_machine_still_runs(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys; sys.was_here = True\n")
    environment = guard_environment({**os.environ, "PYTHONPATH": str(tmp_path / "site")}, tmp_path / "log")
    subprocess.run([sys.executable, "-c", "import sys; assert sys.was_here"], env=environment, check=True)


# -- the proof ---------------------------------------------------------------------------------------------------------

SCENARIOS = """
entries: [
  {description: "dyck_language:num_parenthesis_pairs=3,model=text", priority: 1, groups: []}
  {description: "gsm:model=text", priority: 1, groups: []}
]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import save_tiny_model

    place = tmp_path_factory.mktemp("project")
    items = [{"question": f"{a} + 1 =", "A": str(a + 1), "B": str(a), "answer": "A"} for a in range(9)]
    (place / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (place / "two.py").write_text(DATASET.format(directory=place))
    (place / "evaluator.yaml").write_text(CONFIG)
    save_tiny_model(place / "checkpoints" / "checkpoint-100", seed=1)
    return place


def evaluator(project: Path, *flags: str, config: str = "evaluator.yaml") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "evaluator.py", "--config", str(project / config), "--model-type", "huggingface"]
    command += ["--begin-iteration", "100", "--iteration-interval", "100", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=HOME, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_the_newest_checkpoint_is_evaluated_without_network_and_nothing_is_left(project: Path) -> None:
    done = evaluator(project, "--offline", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(done.stdout)
    (found,) = [one for one in content["findings"] if one["check"] == "offline"]
    assert found["level"] == "ok" and "iteration 100 was evaluated" in found["found"]
    assert "2 tasks, up to 4 items each; no attempt at the network" in found["found"]
    assert list((project / "out").iterdir()) == []


@pytest.mark.slow
def test_a_task_that_wants_the_network_is_named_with_what_it_wanted(project: Path) -> None:
    pytest.importorskip("helm", reason="crfm-helm is not installed")
    (project / "helm.conf").write_text(SCENARIOS)
    text = CONFIG.replace("work_dir: out", "work_dir: helm_out").replace("./two.py], data_dir: .}", "./two.py], data_dir: .}\n  helm: {helm_spec_template_path: helm.conf}")  # fmt: skip
    (project / "helm.yaml").write_text(text)
    done = evaluator(project, "--offline", config="helm.yaml")
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    tried = [line for line in lines if "problem  offline: task gsm tried the network: request: https://" in line]
    assert tried and "gsm_scenario.py" in tried[0]
    assert any("problem  offline: gsm failed" in line and "gsm_data_train is missing" in line for line in lines)
    assert not any("task first tried" in line or "task second tried" in line for line in lines)
    assert not list((project / "helm_out").glob(".offline-*"))
    assert not list((project / "helm_out" / "helm" / "runs").glob("*"))


@pytest.mark.slow
def test_without_a_checkpoint_there_is_nothing_to_prove(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "empty", ignore=shutil.ignore_patterns("checkpoint-100", "out"))
    done = evaluator(tmp_path / "empty", "--offline")
    assert done.returncode == 1
    assert "there is no complete checkpoint that is due yet" in done.stdout
