#!/usr/bin/env bash
# Similar questions with different intents: eval/analyze_similar_questions_and_intents.sh --data_file_path F --model_path DIR (-h tells more)
# PYTHON chooses the interpreter; the default is the repository's .venv when it is there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
[[ -n "${PYTHON:-}" || -x "$python" ]] || python=python3
exec "$python" "$here/analyze_similar_questions_and_intents.py" "$@"
