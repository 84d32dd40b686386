"""The dependency audit, as far as it goes without a network; what pip-audit answers is imitated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]
AUDIT = HOME / "setup_scripts" / "audit.sh"


def run(*flags: str, home: Path = HOME, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(home / "setup_scripts" / "audit.sh"), *flags]
    variables = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False, timeout=120)


def test_no_pinned_and_no_installed_package_has_a_hole_that_matters_here() -> None:
    done = run("--offline")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none is older" in done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "setup_scripts").mkdir()
    for name in ("audit.sh", "least_versions.txt"):
        shutil.copy(HOME / "setup_scripts" / name, tmp_path / "setup_scripts" / name)
    shutil.copy(HOME / "constraints.txt", tmp_path / "constraints.txt")
    return tmp_path


def test_an_old_one_is_named_with_its_hole(repository: Path) -> None:
    pins = (repository / "constraints.txt").read_text().splitlines()
    old = [("PyYAML==5.3" if line.startswith("PyYAML==") else line) for line in pins if not line.startswith("Jinja2==")]
    (repository / "constraints.txt").write_text("\n".join(old))
    done = run("--offline", home=repository)
    assert done.returncode == 1
    assert "constraints.txt: PyYAML 5.3, expected >=5.4 (CVE-2020-14343" in done.stdout
    assert "constraints.txt: Jinja2 is not pinned" in done.stdout


FOUND = "Name   Version ID             Fix Versions\njinja2 2.4.1   CVE-2014-1402  2.7.2\n"
ANSWERS = {
    "nothing": ("", "No known vulnerabilities found", 0, 0, "nothing is known"),
    "a hole": (FOUND, "Found 1 known vulnerability", 1, 1, "CVE-2014-1402"),
    "a package was skipped": ("", "jinja2: Dependency not found on PyPI and could not be audited", 1, 3, ""),
    "no network": ("", "ConnectionError: Failed to resolve 'pypi.org'", 1, 3, ""),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_could_not_be_looked_up_is_not_called_safe(answer: str, repository: Path) -> None:
    """pip-audit itself ends with 0 and "No known vulnerabilities found" where it was told of no package."""
    told, problems, ends, expected, said = ANSWERS[answer]
    python = repository / "python"  # makes an environment whose pip installs nothing, whose pip-audit answers this
    python.write_text(
        f"""#!/bin/sh
if [ "$1" != -m ]; then exec {sys.executable} "$@"; fi
mkdir -p "$3/bin"
printf '#!/bin/sh\\n' > "$3/bin/pip"
cat > "$3/bin/pip-audit" <<'END'
#!/bin/sh
case "$*" in *--strict*) ;; *) exit 0 ;; esac
printf '%s' '{told}'
echo "{problems}" >&2
exit {ends}
END
chmod +x "$3/bin/pip" "$3/bin/pip-audit"
"""
    )
    python.chmod(0o755)
    done = run(home=repository, PYTHON=str(python))
    assert done.returncode == expected, done.stdout + done.stderr
    assert said in done.stdout
    assert ("nothing about the packages" in done.stderr) == (expected == 3)


def test_where_pip_audit_cannot_be_installed_that_is_said(repository: Path) -> None:
    python = repository / "python"
    python.write_text(f'#!/bin/sh\nif [ "$1" = -m ]; then exit 1; fi\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = run(home=repository, PYTHON=str(python))
    assert done.returncode == 3 and "nothing was looked up" in done.stderr
