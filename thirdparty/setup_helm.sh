#!/usr/bin/env bash
# HELM in an environment of its own, for those who want helm-run and helm-summarize beside this project.
#
#   thirdparty/setup_helm.sh [VENV_DIR]       default: thirdparty/.venv-helm
#
# The evaluator needs none of this: setup_scripts/install.sh puts the same release of HELM into .venv, where it runs
# inside the evaluator's own process. PYTHON names the Python to use (3.10 or newer; default python3.11, then python3).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
constraints=$here/../constraints.txt
case "${1:-}" in -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;; esac
venv=${1:-$here/.venv-helm}
fail() { echo "setup_helm.sh: $*" >&2; exit 1; }

python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
[ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "needs Python 3.10 or newer"
torch=$(grep '^torch==' "$constraints") || fail "constraints.txt does not pin torch"
helm=$(grep '^crfm-helm==' "$constraints") || fail "constraints.txt does not pin crfm-helm"

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "$torch and $helm into $venv (2 to 4 minutes)"
"$venv/bin/python" -m pip install --quiet "$torch" -c "$constraints" || fail "$torch could not be installed"
if "$venv/bin/python" -W ignore -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
  # Beside a CPU-only torch the index's torchvision does not import, and takes transformers down with it.
  "$venv/bin/python" -m pip install --quiet --no-deps "$here/torchvision_stub" || fail "the torchvision stub could not be built"
fi
# helm-summarize imports Pillow, which would come with the real torchvision; msmarco's metrics pytrec_eval.
"$venv/bin/python" -m pip install --quiet "$helm" pillow pytrec-eval-terrier -c "$constraints" || fail "$helm could not be installed"
"$venv/bin/python" -m pip check || fail "the packages in $venv do not fit together"
"$venv/bin/helm-run" --help >/dev/null || fail "helm-run does not start"
echo "done: $venv/bin/helm-run"
