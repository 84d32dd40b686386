#!/usr/bin/env bash
# Five dimensions of one model: eval/evaluate_model_from_five_dimensions.sh MODEL [DIMENSIONS] [OPTIONS]
# PYTHON names the interpreter. See eval/README.md.
set -euo pipefail
exec "${PYTHON:-python}" "$(dirname "${BASH_SOURCE[0]}")/evaluate_model_from_five_dimensions.py" "$@"
