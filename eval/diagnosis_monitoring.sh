#!/usr/bin/env bash
# Risks of a training run, from its log: eval/diagnosis_monitoring.sh LOG [--lang en] [--ledger FILE]   (-h tells more)
# PYTHON chooses the interpreter; the default is the repository's .venv when it is there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
[[ -n "${PYTHON:-}" || -x "$python" ]] || python=python3
exec "$python" "$here/diagnosis_monitoring.py" "$@"
