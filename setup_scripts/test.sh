#!/usr/bin/env bash
# The whole test suite in a fresh virtual environment; .ci/run calls it.
#
#   setup_scripts/test.sh [--keep] [PYTEST_ARGUMENTS…]
#
# The environment is .venv-test (TEST_VENV names another), made anew each time; --keep reuses the one that is there.
# On Debian as root, Chromium and Slurm are installed when they are missing; elsewhere the tests that need them say so
# and skip.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repository"
venv=${TEST_VENV:-$repository/.venv-test}
keep=""
case "${1:-}" in
  -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  --keep) keep=1; shift ;;
esac

say() { printf '[test %3ds] %s\n' "$SECONDS" "$*"; }

if [ -z "$keep" ] && [ -e "$venv" ]; then
  # Only what install.sh or venv made is removed: TEST_VENV may have been mistyped.
  [ -f "$venv/pyvenv.cfg" ] || { echo "test.sh: $venv is no virtual environment; not removing it" >&2; exit 2; }
  rm -rf "$venv"
fi
setup_scripts/install.sh --dev "$venv"

if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "Chromium, for the tests of the report"
    log=$(mktemp)
    if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >"$log" 2>&1; then
      tail -n 5 "$log"
      say "note: Chromium could not be installed; the tests that need it will skip"
    fi
    rm -f "$log"
  else
    say "note: there is no Chromium and no right to install it; the tests that need it will skip"
  fi
fi

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  if ! ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1; then
    say "libfaketime, for clocks that jump"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libfaketime >/dev/null 2>&1 ||
      say "note: libfaketime could not be installed; clocks jump for Python alone"
  fi
  command -v logrotate >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    logrotate >/dev/null 2>&1 || say "note: logrotate could not be installed; its two tests will skip"
  say "Slurm, for the tests of its runner"
  setup_scripts/slurm.sh install || say "note: Slurm could not be installed; the tests that need it will skip"
fi

# Many short-lived processes on few cores: one thread each is fastest, and makes timings comparable.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=${WANDB_MODE:-offline}

python=$venv/bin/python
# Once, not by each of the thousand programs that the tests start (Python may be told to keep nothing compiled).
"$python" -m compileall -q autoeval recorder evaluator.py run.py
say "ruff check";  "$python" -m ruff check .
say "ruff format"; "$python" -m ruff format --check .
say "mypy";        "$python" -m mypy autoeval recorder evaluator.py run.py
# Files side by side: much of the suite waits (for Slurm, a browser, the W&B client).
workers=$(env -u OMP_NUM_THREADS nproc); [ "$workers" -le 4 ] || workers=4
say "pytest";      "$python" -m pytest -n "$workers" --dist loadfile "$@"
say "all passed"
