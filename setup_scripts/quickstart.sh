#!/usr/bin/env bash
# Install into .venv (or VENV_DIR), then watch a small GPT learn: train, evaluate every checkpoint, show the curves.
#
#   setup_scripts/quickstart.sh [VENV_DIR]
#
# Needs Python 3.10+, two cores, 4 GB of memory and 4 GB of disk. No GPU, no account; network for the package index only.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case "${1:-}" in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;; esac
venv=${1:-$repository/.venv}

"$repository/setup_scripts/install.sh" "$venv"
exec "$repository/demos/quickstart/run.sh" "$venv/bin/python"
