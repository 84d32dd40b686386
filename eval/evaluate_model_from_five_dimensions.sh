#!/usr/bin/env bash
# Five dimensions of one model: eval/evaluate_model_from_five_dimensions.sh MODEL [DIMENSIONS] [OPTIONS]   (-h tells more)
# PYTHON chooses the interpreter; the default is the repository's .venv when it is there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
[[ -n "${PYTHON:-}" || -x "$python" ]] || python=python3
exec "$python" "$here/evaluate_model_from_five_dimensions.py" "$@"
