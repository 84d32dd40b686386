#!/usr/bin/env bash
# Make (or bring up to date) the virtual environment that everything here runs in.
#
#   setup_scripts/install.sh [--dev] [VENV_DIR]       default: .venv in the repository
#
# PYTHON names the Python to use (3.10 or newer; default python3.11, then python3). A second call is quick: a stamp
# in VENV_DIR holds the hash of what was asked for. --dev adds pytest, ruff and mypy.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
requirements=("$repository/requirements.txt")
venv=""
for argument in "$@"; do
  case "$argument" in
    --dev) requirements+=("$repository/requirements-dev.txt") ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    -*) echo "install.sh: unknown option $argument; expected [--dev] [VENV_DIR]" >&2; exit 2 ;;
    *) venv=$argument ;;
  esac
done
venv=${venv:-$repository/.venv}

say() { printf '[install %3ds] %s\n' "$SECONDS" "$*"; }
fail() { echo "install.sh: $*" >&2; exit 1; }

python_is_new() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

if [ -n "${PYTHON:-}" ]; then
  python_is_new "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.10 or newer"
else
  for candidate in python3.11 python3; do
    if python_is_new "$candidate"; then PYTHON=$candidate; break; fi
  done
  [ -n "${PYTHON:-}" ] || fail "needs Python 3.10 or newer; found none (set PYTHON to one)"
fi

sources=("${requirements[@]}" "$repository/constraints.txt" "$repository/thirdparty/torchvision_stub/pyproject.toml")
wanted=$(cat "${sources[@]}" | "$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
stamp=$venv/.autoeval-installed
if [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && grep -qx "$wanted" "$stamp"; then
  say "$venv is up to date"
  exit 0
fi

# The log of the step that failed is what a person needs; the hundreds of lines of the others are not.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
step() {
  local what=$1; shift
  say "$what"
  "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; fail "this step failed (above: the end of its output): $what"; }
}
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

if [ ! -x "$venv/bin/python" ]; then
  step "virtual environment in $venv ($("$PYTHON" --version))" "$PYTHON" -m venv "$venv"
fi
if ! pip --version | "$PYTHON" -c 'import sys; sys.exit(int(sys.stdin.read().split()[1].split(".")[0]) < 23)'; then
  step "newer pip" pip install --upgrade pip
fi

# torch first: whether it has CUDA decides which torchvision may be installed beside it. On an ordinary machine without
# a GPU the package index's torch brings 2.5 GB of CUDA libraries; PyTorch's own index has the CPU build.
torch_pin=$(grep "^torch==" "$repository/constraints.txt") || fail "constraints.txt does not pin torch"
torch_index=()
if ! command -v nvidia-smi >/dev/null && [ "$(uname -s)" = Linux ] && [ -z "${PIP_FIND_LINKS:-}${PIP_INDEX_URL:-}${PIP_NO_INDEX:-}" ]; then
  torch_index=(--index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple)
fi
step "$torch_pin" pip install ${torch_index[@]+"${torch_index[@]}"} "$torch_pin" numpy -c "$repository/constraints.txt"  # numpy: torch warns without it
if "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
  step "torchvision stub (this torch has no CUDA; see thirdparty/torchvision_stub)" \
    pip install --no-deps "$repository/thirdparty/torchvision_stub"
fi

arguments=(-c "$repository/constraints.txt")
for file in "${requirements[@]}"; do arguments+=(-r "$file"); done
step "the other packages (2 to 5 minutes)" pip install "${arguments[@]}"
step "checking that they fit together" pip check
echo "$wanted" >"$stamp"
say "done: $venv ($(du -sh "$venv" | cut -f1))"
