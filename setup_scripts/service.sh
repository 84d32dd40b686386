#!/usr/bin/env bash
# Run the daemon as a systemd service: of your own user (default, no root needed) or of the system.
#
#   setup_scripts/service.sh install [--system] [--name NAME] --config evaluator.yaml [FLAGS OF evaluator.py…]
#   setup_scripts/service.sh show    …the same…          print the unit instead of installing it
#   setup_scripts/service.sh remove  [--system] NAME
#
# NAME defaults to the configuration's model_name; the service is autoeval-NAME. Keys (WANDB_API_KEY=…, LARK_WEBHOOK=…)
# go into ~/.config/autoeval/NAME.env (--system: /etc/autoeval/NAME.env), which is made, readable by you alone.
# PYTHON names the Python of the environment (default: .venv/bin/python). --system runs it as the user who owns work_dir
# (SERVICE_USER names another), and needs root.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage() { sed -n '2,11p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'; }
fail() { echo "service.sh: $*" >&2; exit 2; }

# A word of ExecStart=: quoted, with what systemd would replace made literal (systemd.service(5), "Command lines").
word() {
  local text=$1
  case $text in *$'\n'*) fail "a line break in '$text' cannot stand in a unit" ;; esac
  text=${text//\\/\\\\}; text=${text//\"/\\\"}; text=${text//%/%%}; text=${text//\$/\$\$}
  printf '"%s"' "$text"
}
# A path in another setting: only % is special there, and a space where several may stand.
setting() { local text=${1//%/%%}; printf '%s' "${text// /\\x20}"; }

places() {
  if [ -n "$system" ]; then
    units=/etc/systemd/system settings=/etc/autoeval target=multi-user.target control=(systemctl)
  else
    units=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user settings=${XDG_CONFIG_HOME:-$HOME/.config}/autoeval
    target=default.target control=(systemctl --user)
  fi
}

# Paths and names from the configuration itself: what evaluator.py will read is what is checked.
ask_configuration() {
  local answer
  answer=$(cd "$repository" && "$python" - "$config" <<'PYTHON'
import sys
try:
    from autoeval.config import load_config
    from autoeval.yaml_file import ConfigError
except ImportError as error:
    sys.exit(f"{sys.executable}: {error}: this is not the environment that setup_scripts/install.sh makes (set PYTHON)")
try:
    runs = load_config(sys.argv[1])
except ConfigError as error:
    sys.exit(str(error))
print(runs[0].model_name)
for run in runs:
    print(run.work_dir)
    if run.helm is not None and run.helm.helm_output_path is not None:
        print(run.helm.helm_output_path)
PYTHON
  ) || exit 2
  model=$(sed -n 1p <<<"$answer")
  mapfile -t written < <(sed 1d <<<"$answer" | sort -u)
}

unit() {
  local text command hardening="" path
  text=$(cat "$repository/setup_scripts/autoeval.service.in")
  command="$(word "$python") $(word "$repository/evaluator.py") --config $(word "$config")"
  for path in ${flags[@]+"${flags[@]}"}; do command+=" $(word "$path")"; done
  if [ -n "$system" ]; then
    # Not in a user's unit: these need mount namespaces, which not every system gives to users. Left out on purpose:
    # ProtectKernelTunables= and ProtectProc= (the sandbox for model-written code mounts a /proc of its own),
    # PrivateDevices= and ProtectClock= (GPUs), MemoryDenyWriteExecute= (torch compiles), RestrictNamespaces= (sandbox).
    hardening="User=$owner"$'\n'"ProtectSystem=strict"$'\n'
    for path in "${written[@]}"; do hardening+="ReadWritePaths=$(setting "$path")"$'\n'; done
    hardening+="PrivateTmp=yes"$'\n'"ProtectHome=read-only"$'\n'"ProtectControlGroups=yes"$'\n'"ProtectKernelModules=yes"$'\n'
    hardening+="CapabilityBoundingSet="$'\n'"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK"$'\n'
  fi
  text=${text//@NAME@/"$name"}
  text=${text//@REPOSITORY@/"$(setting "$repository")"}
  text=${text//@ENVIRONMENT@/"$(setting "$settings/$name.env")"}
  text=${text//@COMMAND@/"$command"}
  text=${text//@TARGET@/"$target"}
  text=${text//@HARDENING@/"$hardening"}
  printf '%s\n' "$text" | sed 1d
}

# What systemd itself says of the unit, where it is installed. Its exit status does not tell: a key that it passes over is
# a warning, and without a running manager it complains of other things.
verify() {
  command -v systemd-analyze >/dev/null || return 0
  local said mode=--user
  [ -z "$system" ] || mode=--system
  said=$(systemd-analyze "$mode" --man=no verify "$1" 2>&1 | grep -F "$(basename "$1")" || true)
  [ -z "$said" ] || { echo "$said" >&2; fail "systemd does not take this unit"; }
}

install_unit() {
  local path
  mkdir -p "$units" "$settings"
  for path in "${written[@]}"; do # ReadWritePaths= wants them to be there
    [ -d "$path" ] || { mkdir -p "$path"; [ -z "$system" ] || chown "$owner" "$path"; }
  done
  place=$(mktemp -d)
  trap 'rm -rf "$place"' EXIT
  unit >"$place/autoeval-$name.service"
  verify "$place/autoeval-$name.service"
  if [ ! -e "$settings/$name.env" ]; then
    (umask 077; printf '# A line each: WANDB_API_KEY=…  LARK_WEBHOOK=…  LARK_SECRET=…\n' >"$settings/$name.env")
  elif [ -n "$(find "$settings/$name.env" -perm /077)" ]; then
    echo "service.sh: note: $settings/$name.env can be read by others: chmod 600 $settings/$name.env" >&2
  fi
  cp "$place/autoeval-$name.service" "$units/.autoeval-$name.service.new"
  mv "$units/.autoeval-$name.service.new" "$units/autoeval-$name.service"
  "${control[@]}" daemon-reload 2>/dev/null || true # no manager is running here: it will read the unit when it starts
  echo "$units/autoeval-$name.service"
  echo "keys: $settings/$name.env"
  echo "start: ${control[*]} enable --now autoeval-$name"
  [ -n "$system" ] || echo "also when you are logged out: loginctl enable-linger $(id -un)"
  echo "see: ${control[*]} status autoeval-$name; $(tr ' ' '\n' <<<"${control[*]}" | grep -q user && echo 'journalctl --user' || echo journalctl) -u autoeval-$name"
}

command=${1:-}
case "$command" in
  install | show | remove) shift ;;
  -h | --help) usage; exit ;;
  *) usage >&2; exit 2 ;;
esac
system="" name="" config="" flags=()
while [ $# -gt 0 ]; do
  case "$1" in
    --system) system=1 ;;
    --name) [ $# -ge 2 ] || fail "--name needs a name"; name=$2; shift ;;
    --config) [ $# -ge 2 ] || fail "--config needs a file"; config=$2; shift ;;
    --config=*) config=${1#--config=} ;;
    *) flags+=("$1") ;;
  esac
  shift
done
places

if [ "$command" = remove ]; then
  name=${name:-${flags[0]:-}}
  [ -n "$name" ] || fail "remove which one? expected its NAME"
  [ -e "$units/autoeval-$name.service" ] || fail "$units/autoeval-$name.service is not there"
  "${control[@]}" disable --now "autoeval-$name" 2>/dev/null || true
  rm -f "$units/autoeval-$name.service"
  "${control[@]}" daemon-reload 2>/dev/null || true
  echo "removed $units/autoeval-$name.service; $settings/$name.env is left"
  exit
fi

[ -n "$config" ] || fail "--config is missing"
[ -f "$config" ] || fail "$config: there is no such file"
config=$(cd "$(dirname "$config")" && pwd)/$(basename "$config")
python=${PYTHON:-$repository/.venv/bin/python}
[ -x "$python" ] || fail "$python: there is no such Python; setup_scripts/install.sh makes it, PYTHON names another"
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
"$python" -c '' 2>/dev/null || fail "$python is no Python that works"
ask_configuration
name=${name:-$model}
case $name in *[!A-Za-z0-9_.-]* | "") fail "--name '$name': expected letters, digits, '_', '.' or '-'" ;; esac
if [ -n "$system" ]; then
  [ "$command" = show ] || [ "$(id -u)" = 0 ] || fail "--system needs root"
  owner=${SERVICE_USER:-$(stat -c %U "${written[0]}" 2>/dev/null || id -un)}
fi
# The flags are evaluator.py's: it knows them best. (--help ends before anything else is looked at.)
"$python" "$repository/evaluator.py" --config "$config" ${flags[@]+"${flags[@]}"} --help >/dev/null || exit 2
case " ${flags[*]-} " in
  *" --once "* | *" --status "* | *" --doctor "* | *" --dry-run "*) fail "a service runs for ever: without --once, --status, --doctor and --dry-run" ;;
esac
if [ "$command" = show ]; then unit; else install_unit; fi
