#!/usr/bin/env bash
# A real Slurm of one node on this machine, for tests and for trying things out. Not for production.
#
#   setup_scripts/slurm.sh install         Debian packages, as root (22.05 on Debian 12; 20 s)
#   setup_scripts/slurm.sh start DIR       start it, everything below DIR, all ports on 127.0.0.1; again: nothing
#   setup_scripts/slurm.sh stop DIR        end it, with all of its jobs
#   setup_scripts/slurm.sh kill-controller DIR, start-controller DIR      what tests do to it
#
# Then: export SLURM_CONF=DIR/slurm.conf. There are 16 pretended CPUs and 8 pretended GPUs (CUDA_VISIBLE_DEVICES is set
# truly for each job), partitions eval (default), debug, short (one minute) and urgent (preempts), and --quotatype=reserved|spot|auto,
# which stock Slurm does not have: with `start DIR plain` it is left out.
set -euo pipefail

usage() { sed -n '2,11p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'; }
fail() { echo "slurm.sh: $*" >&2; exit 1; }

install() {
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && return
  [ "$(id -u)" = 0 ] || fail "installing needs root"
  # Debian starts its own daemons of a package as it installs it; these are not wanted.
  local policy=/usr/sbin/policy-rc.d made=""
  if [ ! -e "$policy" ]; then printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod 755 "$policy"; made=1; fi
  local status=0
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins-dev libslurm-dev gcc libc6-dev; } >/dev/null 2>&1 || status=$?
  [ -z "$made" ] || rm -f "$policy"
  [ "$status" = 0 ] || fail "the Debian packages could not be installed"
}

# Below those that the system gives to connections: between now and the daemon's start, and while it is down, nobody gets it.
free_port() {
  python3 - <<'PYTHON'
import random, socket
while True:
    port = random.randrange(20000, 32000)
    with socket.socket() as tried:
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            continue
    print(port)
    break
PYTHON
}

configure() {
  local host; host=$(hostname -s)
  mkdir -p "$dir"/{state,spool,log,run}
  [ -s "$dir/munge.key" ] || (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
  for number in 0 1 2 3 4 5 6 7; do
    [ -e "$dir/fakegpu$number" ] || mknod -m 666 "$dir/fakegpu$number" c 1 3 # Slurm accepts devices only
  done
  # SlurmctldHost must be this machine's own name, the address need not. cred_expire shortens the wait of a requeued job.
  cat >"$dir/slurm.conf" <<CONF
ClusterName=autoeval
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
SlurmdUser=root
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.sock,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=2
MessageTimeout=5
MailProg=/bin/true
MinJobAge=600
JobRequeue=1
AccountingStorageType=accounting_storage/none
GresTypes=gpu
PlugStackConfig=$dir/plugstack.conf
NodeName=ci0 NodeHostname=$host NodeAddr=127.0.0.1 CPUs=16 RealMemory=16000 Gres=gpu:fake:8
PartitionName=eval Nodes=ci0 Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=100
PartitionName=debug Nodes=ci0 MaxTime=INFINITE State=UP DefMemPerCPU=100
PartitionName=short Nodes=ci0 MaxTime=00:01:00 State=UP DefMemPerCPU=100
PartitionName=urgent Nodes=ci0 MaxTime=INFINITE State=UP DefMemPerCPU=100 PriorityTier=10 PreemptMode=OFF
CONF
  echo "NodeName=ci0 Name=gpu Type=fake Flags=nvidia_gpu_env File=$dir/fakegpu[0-7]" >"$dir/gres.conf"
  printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$dir/cgroup.conf"
  : >"$dir/plugstack.conf"
  [ "$kind" = plain ] || quotatype
}

# Sites that sell reserved and spot quota add this option by a plugin like this one.
quotatype() {
  cat >"$dir/quotatype.c" <<'SOURCE'
#include <slurm/spank.h>
#include <stdlib.h>
#include <string.h>
SPANK_PLUGIN(quotatype, 1);
static int take(int value, const char *text, int remote) {
  (void)value;
  if (text == NULL || (strcmp(text, "reserved") && strcmp(text, "spot") && strcmp(text, "auto"))) return -1;
  return remote ? 0 : setenv("SLURM_QUOTATYPE", text, 1);
}
static struct spank_option option = {"quotatype", "TYPE", "reserved, spot or auto", 1, 0, (spank_opt_cb_f)take};
int slurm_spank_init(spank_t spank, int count, char **words) {
  (void)count; (void)words;
  return spank_option_register(spank, &option);
}
SOURCE
  gcc -shared -fPIC -o "$dir/quotatype.so" "$dir/quotatype.c" || fail "gcc could not make the --quotatype plugin"
  echo "required $dir/quotatype.so" >"$dir/plugstack.conf"
}

# A process that nobody reaps, as in many containers, is not alive.
alive() { [ -s "$1" ] && [ -e "/proc/$(cat "$1")/stat" ] && ! grep -q ') Z ' "/proc/$(cat "$1")/stat" 2>/dev/null; }

wait_for() { # what it is, then the command
  local what=$1; shift
  for _ in $(seq 900); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
  tail -n 5 "$dir"/log/*.log >&2 || true
  fail "$what did not come up within 90 s"
}

# One that is alive may be about to end: it answers no more, and then it is started after all.
controller_answers() {
  scontrol ping && return
  alive "$dir/run/slurmctld.pid" || slurmctld -f "$dir/slurm.conf" || true
  for _ in $(seq 20); do scontrol ping && return; sleep 0.1; done
  return 1
}

controller() { wait_for slurmctld controller_answers; }

start() {
  [ -s "$dir/slurm.conf" ] || configure
  export SLURM_CONF=$dir/slurm.conf
  chmod 755 "$dir" "$dir/run"
  alive "$dir/run/munged.pid" || munged --force --socket="$dir/run/munge.sock" --key-file="$dir/munge.key" \
    --pid-file="$dir/run/munged.pid" --log-file="$dir/log/munged.log" --seed-file="$dir/run/munge.seed"
  controller
  alive "$dir/run/slurmd.pid" || slurmd -f "$dir/slurm.conf" -N ci0
  wait_for slurmd sh -c 'sinfo -h -o %T | grep -qE "idle|mixed|allocated"'
  echo "export SLURM_CONF=$dir/slurm.conf"
}

stop() {
  [ -s "$dir/slurm.conf" ] || return 0
  export SLURM_CONF=$dir/slurm.conf
  timeout 5 scancel -u "$(id -un)" --signal=KILL --full >/dev/null 2>&1 || true
  for name in slurmctld slurmd munged; do
    if alive "$dir/run/$name.pid"; then kill "$(cat "$dir/run/$name.pid")" 2>/dev/null || true; fi
  done
  for _ in $(seq 50); do
    alive "$dir/run/slurmd.pid" || alive "$dir/run/slurmctld.pid" || break
    sleep 0.1
  done
  for name in slurmctld slurmd; do
    if alive "$dir/run/$name.pid"; then kill -9 "$(cat "$dir/run/$name.pid")" 2>/dev/null || true; fi
  done
  for step in $(pgrep slurmstepd || true); do # of a job that a killed controller has forgotten
    if tr '\0' '\n' <"/proc/$step/environ" 2>/dev/null | grep -qxF "SLURM_CONF=$dir/slurm.conf"; then kill -9 "$step" || true; fi
  done
}

command=${1:-}
case "$command" in
  install) install; exit ;;
  start | stop | kill-controller | start-controller) [ $# -ge 2 ] || { usage >&2; exit 2; } ;;
  -h | --help) usage; exit ;;
  *) usage >&2; exit 2 ;;
esac
mkdir -p "$2"
dir=$(cd "$2" && pwd) kind=${3:-quotatype}
export SLURM_CONF=$dir/slurm.conf
case "$command" in
  start) start ;;
  stop) stop ;;
  kill-controller)
    kill -9 "$(cat "$dir/run/slurmctld.pid")"
    while alive "$dir/run/slurmctld.pid"; do sleep 0.05; done
    ;;
  start-controller) controller ;;
esac
