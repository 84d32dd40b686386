#!/usr/bin/env bash
# One model on a file of conversations: eval/model_performance_evaluation.sh --model_name_or_path … --dataset_path …
# PYTHON names the interpreter. See eval/README.md.
set -euo pipefail
exec "${PYTHON:-python}" "$(dirname "${BASH_SOURCE[0]}")/model_performance_evaluation.py" "$@"
