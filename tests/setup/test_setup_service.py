"""The systemd service: a unit that systemd takes, with every place filled in; and run for real by a user's systemd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "setup_scripts" / "service.sh"
CONFIG = """
auto_eval:
  project_name: tiny
  model_name: tiny-gpt2
  work_dir: out
  huggingface: {checkpoint_path: checkpoints}
  icl: {datasets: [hellaswag_ppl]}
  wandb: {mode: disabled}
"""


def service(home: Path, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    whole = {**os.environ, "HOME": str(home), "PYTHON": sys.executable, **environment}
    whole.pop("XDG_CONFIG_HOME", None)
    return subprocess.run(
        [SCRIPT, *map(str, words)], env=whole, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """In a directory whose name systemd would take apart."""
    place = tmp_path / "50% of $HOME"
    place.mkdir()
    (place / "evaluator.yaml").write_text(CONFIG)
    return place / "evaluator.yaml"


def executed(unit: str) -> list[str]:
    """The words of ExecStart= as systemd takes them (only what is used here: quotes, %%, $$)."""
    line = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    words = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', line.removeprefix("ExecStart="))
    return [(quoted or bare).replace("%%", "%").replace("$$", "$") for quoted, bare in words]


def test_every_place_of_the_template_is_filled_and_the_command_is_the_one_asked_for(
    config: Path, tmp_path: Path
) -> None:
    done = service(tmp_path, "show", "--config", config, "--model-type", "huggingface", "--check-interval", "1")
    assert done.returncode == 0, done.stderr
    assert not re.search(r"@[A-Z]+@", done.stdout)
    words = executed(done.stdout)
    assert words[:4] == [sys.executable, str(ROOT / "evaluator.py"), "--config", str(config)]
    assert words[4:] == ["--model-type", "huggingface", "--check-interval", "1"]
    for line in ("Restart=on-failure", "KillSignal=SIGTERM", "TimeoutStopSec=30", "SuccessExitStatus=143 130"):
        assert line in done.stdout.splitlines()


def test_installing_twice_and_removing(config: Path, tmp_path: Path) -> None:
    unit = tmp_path / ".config" / "systemd" / "user" / "autoeval-tiny-gpt2.service"
    keys = tmp_path / ".config" / "autoeval" / "tiny-gpt2.env"
    for _ in range(2):
        done = service(tmp_path, "install", "--config", config, "--model-type", "huggingface")
        assert done.returncode == 0, done.stderr
        assert str(unit) in done.stdout and "systemctl --user enable --now autoeval-tiny-gpt2" in done.stdout
    assert keys.stat().st_mode & 0o077 == 0
    keys.chmod(0o644)
    assert "can be read by others" in service(tmp_path, "install", "--config", config).stderr
    removed = service(tmp_path, "remove", "tiny-gpt2")
    assert removed.returncode == 0 and not unit.exists() and keys.exists()
    assert service(tmp_path, "remove", "tiny-gpt2").returncode == 2


@pytest.mark.parametrize("system", [False, True])
def test_systemd_itself_takes_the_unit(config: Path, tmp_path: Path, system: bool) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    flags = ["--system"] if system else []
    text = service(tmp_path, "show", *flags, "--config", config).stdout
    unit = tmp_path / "autoeval-tiny-gpt2.service"

    def complaints(content: str) -> str:
        unit.write_text(content)
        command = ["systemd-analyze", "--system", "--man=no", "verify", unit]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return "\n".join(line for line in (done.stdout + done.stderr).splitlines() if unit.name in line)

    assert complaints(text) == ""
    assert "restart specifier" in complaints(text.replace("Restart=on-failure", "Restart=on-fialure"))  # it does look


def test_the_system_s_service_may_write_only_where_the_run_writes(config: Path, tmp_path: Path) -> None:
    text = service(tmp_path, "show", "--system", "--config", config, SERVICE_USER="nobody").stdout
    assert "User=nobody" in text and "ProtectSystem=strict" in text
    (line,) = [line for line in text.splitlines() if line.startswith("ReadWritePaths=")]
    assert line == "ReadWritePaths=" + str(config.parent / "out").replace("%", "%%").replace(" ", "\\x20")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["install"], "--config is missing"),
        (["install", "--config", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
        (["install", "--config", "CONFIG", "--model-type", "tensorflow"], "invalid choice: 'tensorflow'"),
        (["install", "--config", "CONFIG", "--once"], "a service runs for ever"),
        (["install", "--config", "CONFIG", "--name", "../evil"], "expected letters"),
        (["start"], "service.sh install"),
    ],
)
def test_what_cannot_work_is_said_and_nothing_is_installed(
    config: Path, tmp_path: Path, words: list[str], told: str
) -> None:
    done = service(tmp_path, *[str(config) if word == "CONFIG" else word for word in words])
    assert done.returncode == 2
    assert told in done.stderr
    assert not (tmp_path / ".config" / "systemd").exists()


def test_a_wrong_configuration_or_python_is_told_at_installation(config: Path, tmp_path: Path) -> None:
    assert "no Python that works" in service(tmp_path, "install", "--config", config, PYTHON="/bin/false").stderr
    assert "install.sh" in service(tmp_path, "install", "--config", config, PYTHON="/nowhere/python").stderr
    config.write_text(CONFIG.replace("model_name", "modelname"))
    done = service(tmp_path, "install", "--config", config)
    assert done.returncode == 2 and "unknown key; did you mean 'model_name'?" in done.stderr


# A user's systemd in a mount namespace of its own: it asks whether the machine was booted with systemd.
MANAGER = """
set -e
mount -t tmpfs none /run
mkdir -p /run/systemd/system /run/user/0
chmod 700 /run/user/0
export XDG_RUNTIME_DIR=/run/user/0
/lib/systemd/systemd --user --log-target=console --unit=basic.target >"$HOME/systemd.log" 2>&1 &
manager=$!
trap 'kill $manager; wait $manager || true' EXIT
for _ in $(seq 600); do systemctl --user is-active -q basic.target && break; sleep 0.1; done
bash -e "$HOME/steps.sh"
"""
STEPS = """
log=$1/out/logs/daemon.log
wait_for() { for _ in $(seq 1200); do grep -q "$1" "$log" 2>/dev/null && return; sleep 0.1; done; echo "never: $1"; exit 1; }
pid() { systemctl --user show -P MainPID autoeval-tiny-gpt2; }
systemctl --user daemon-reload
systemctl --user start autoeval-tiny-gpt2
wait_for "watching"
first=$(pid)
kill -9 "$first"; : > "$log"
for _ in $(seq 600); do second=$(pid); [ "$second" != 0 ] && [ "$second" != "$first" ] && break; sleep 0.1; done
wait_for "watching"
echo "restarted $([ "$first" != "$second" ] && echo yes)"
systemctl --user stop autoeval-tiny-gpt2
systemctl --user show -P Result,ExecMainStatus,ActiveState autoeval-tiny-gpt2
cat "$log"
"""


@pytest.mark.slow
def test_a_user_s_systemd_starts_it_starts_it_again_after_a_kill_and_ends_it_in_order(tmp_path: Path) -> None:
    systemd = Path("/lib/systemd/systemd")
    if os.geteuid() != 0 or not systemd.exists() or shutil.which("systemctl") is None:
        pytest.skip("needs systemd's own programs, and root to give them a /run of their own")
    (tmp_path / "items.jsonl").write_text('{"question": "1 + 1 =", "A": "2", "B": "3", "answer": "A"}\n')
    from tests.end_to_end.daemon_world import DATASET

    (tmp_path / "two.py").write_text(DATASET.format(directory=tmp_path))
    (tmp_path / "evaluator.yaml").write_text(CONFIG.replace("hellaswag_ppl", "./two.py"))
    (tmp_path / "checkpoints").mkdir()
    done = service(tmp_path, "install", "--config", tmp_path / "evaluator.yaml", "--model-type", "huggingface")
    assert done.returncode == 0, done.stderr
    unit = tmp_path / ".config" / "systemd" / "user" / "autoeval-tiny-gpt2.service"
    unit.write_text(unit.read_text().replace("RestartSec=30", "RestartSec=1"))
    (tmp_path / "steps.sh").write_text(f"set -- {tmp_path}\n{STEPS}")
    (tmp_path / "manager.sh").write_text(MANAGER)
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("XDG_CONFIG_HOME", None)
    ran = subprocess.run(
        ["unshare", "--mount", "bash", tmp_path / "manager.sh"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    if "Failed to" in (log := (tmp_path / "systemd.log").read_text()) and "cgroup" in log:
        pytest.skip(f"systemd cannot run here: {log.splitlines()[-1]}")
    assert ran.returncode == 0, ran.stdout + ran.stderr + log
    lines = ran.stdout.splitlines()
    assert "restarted yes" in lines
    assert {"success", "inactive"} <= set(lines)  # not failed: 143 is how it ends in order
    assert any("SIGTERM" in line for line in lines)
