#!/usr/bin/env bash
# One model on a file of conversations: eval/model_performance_evaluation.sh --model_name_or_path … --dataset_path …   (-h tells more)
# PYTHON chooses the interpreter; the default is the repository's .venv when it is there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
[[ -n "${PYTHON:-}" || -x "$python" ]] || python=python3
exec "$python" "$here/model_performance_evaluation.py" "$@"
