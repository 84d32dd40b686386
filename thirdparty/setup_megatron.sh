#!/usr/bin/env bash
# Megatron for training runs: megatron-core from the package index, and (with --scripts) Megatron-LM's training scripts.
#
#   thirdparty/setup_megatron.sh [--scripts] [VENV_DIR]       default: .venv
#
# The quickstart and the converter need megatron-core at most (the converter not even that). pretrain_gpt.py is in no
# released package: --scripts checks out the release of Megatron-LM that belongs to the pinned megatron-core, unchanged,
# into thirdparty/Megatron-LM. That needs git and access to github.com.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$here")
scripts="" venv=""
for argument in "$@"; do
  case "$argument" in
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --scripts) scripts=1 ;;
    -*) echo "setup_megatron.sh: unknown option $argument; expected [--scripts] [VENV_DIR]" >&2; exit 2 ;;
    *) venv=$argument ;;
  esac
done
venv=${venv:-$repository/.venv}
fail() { echo "setup_megatron.sh: $*" >&2; exit 1; }
[ -x "$venv/bin/python" ] || fail "no Python in $venv; run setup_scripts/install.sh $venv first"

pin=$(grep '^megatron-core==' "$repository/constraints.txt") || fail "constraints.txt does not pin megatron-core"
"$venv/bin/python" -m pip install --quiet "$pin" -c "$repository/constraints.txt" || fail "$pin could not be installed"
"$venv/bin/python" -W ignore -c 'import megatron.core; print("megatron-core", megatron.core.__version__)'

if [ -n "$scripts" ]; then
  version=${pin#*==}
  checkout=$here/Megatron-LM
  if [ -e "$checkout" ]; then
    echo "Megatron-LM is in $checkout already: $(git -C "$checkout" describe --tags --always)"
  else
    command -v git >/dev/null || fail "--scripts needs git"
    git clone --quiet --depth 1 --branch "core_v$version" https://github.com/NVIDIA/Megatron-LM.git "$checkout" ||
      fail "Megatron-LM core_v$version could not be fetched from github.com (megatron-core itself is installed)"
    echo "Megatron-LM core_v$version is in $checkout (pretrain_gpt.py)"
  fi
fi
