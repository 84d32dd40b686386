#!/usr/bin/env bash
# Are there published vulnerabilities in what autoeval runs on?
#
#   setup_scripts/audit.sh             everything in constraints.txt, by pip-audit (network: PyPI)
#   setup_scripts/audit.sh --osv       by the database of osv.dev instead
#   setup_scripts/audit.sh --offline   without a network: pins, installed versions and setup_scripts/least_versions.txt
#
# Ends with 0 when everything was looked up and nothing is known, 1 when something is known or a version is wrong, 3 when
# it could not be looked up (then nothing is said about it). PYTHON names the Python of the environment (default: .venv's).
# pip-audit is installed into a directory of its own that is removed again.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
version=2.10.1
service=pypi
case ${1:-} in
  -h|--help) sed -n '2,10p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'; exit 0 ;;
  --offline) service= ;;
  --osv) service=osv ;;
  '') ;;
  *) echo "audit.sh: unknown option '$1' (--help says how to call it)" >&2; exit 2 ;;
esac
python=${PYTHON:-$repository/.venv/bin/python}
[ -x "$(command -v "$python")" ] || { echo "audit.sh: $python: no such Python; set PYTHON" >&2; exit 2; }

"$python" - "$repository" <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

root = Path(sys.argv[1])
lines = [line.partition("#")[0].strip() for line in (root / "constraints.txt").read_text().splitlines()]
pins = {r.name.lower(): next(iter(r.specifier)).version for r in map(Requirement, filter(None, lines))}
wrong = []
for line in (root / "setup_scripts" / "least_versions.txt").read_text().splitlines():
    text, _, why = line.partition("#")
    if not text.strip():
        continue
    wanted = Requirement(text.strip())
    found = {"constraints.txt": pins.get(wanted.name.lower())}
    try:
        found["this environment"] = version(wanted.name)
    except PackageNotFoundError:
        pass
    for where, what in found.items():
        if what is None or not wanted.specifier.contains(what, prereleases=True):
            wrong.append(f"{where}: {wanted.name} {what or 'is not pinned'}, expected {wanted.specifier} ({why.strip()})")
print("\n".join(wrong) or f"{len(pins)} pinned packages: none is older than setup_scripts/least_versions.txt asks for")
sys.exit(bool(wrong))
PYTHON
[ -n "$service" ] || exit 0

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
if ! "$python" -m venv "$place/venv" || ! "$place/venv/bin/pip" install --quiet "pip-audit==$version"; then
  echo "audit.sh: pip-audit cannot be installed here: nothing was looked up" >&2
  exit 3
fi
# A local build of a public package ("+cpu") is looked up as the public one.
sed 's/+[A-Za-z0-9.]*//' "$repository/constraints.txt" > "$place/packages.txt"
code=0
"$place/venv/bin/pip-audit" --requirement "$place/packages.txt" --no-deps --disable-pip --strict --timeout 30 \
  --progress-spinner off --vulnerability-service "$service" > "$place/told" 2> "$place/problems" || code=$?
cat "$place/told"
if [ "$code" = 0 ]; then
  echo "nothing is known against the pinned packages"
elif grep -q '^Name .*ID' "$place/told"; then
  exit 1
else
  tail -n 3 "$place/problems" >&2
  echo "audit.sh: not everything could be looked up: this says nothing about the packages" >&2
  exit 3
fi
