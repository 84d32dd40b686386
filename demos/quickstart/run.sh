#!/usr/bin/env bash
# The quickstart's main job with an environment that exists already (setup_scripts/install.sh makes one).
#
#   demos/quickstart/run.sh [PYTHON] [WORK_DIR]     default: .venv/bin/python, this directory
#
# 1. starts the evaluator, which waits for checkpoints that do not exist yet,
# 2. trains a small GPT with megatron-core on the CPU, which saves them,
# 3. waits until the evaluator has recorded the last one, and says where to look.
# All output goes to WORK_DIR/run; what an earlier run left there is removed. Ctrl-C stops both programs.
set -euo pipefail

demo=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$demo/../.." && pwd)
case "${1:-}" in -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;; esac
python=${1:-$repository/.venv/bin/python}
work_dir=${2:-$demo}
iterations=${QUICKSTART_ITERATIONS:-800}
interval=${QUICKSTART_SAVE_INTERVAL:-100}
command -v "$python" >/dev/null || { echo "run.sh: $python is not there; run setup_scripts/install.sh first" >&2; exit 2; }

mkdir -p "$work_dir"
work_dir=$(cd "$work_dir" && pwd)
run=$work_dir/run
if [ "$work_dir" != "$demo" ]; then  # the configuration's relative paths belong to the directory it lies in
  cp -R "$demo/evaluator.yaml" "$demo/helm.conf" "$demo/baselines.yaml" "$demo/leaderboard.yaml" "$demo/datasets" "$work_dir/"
fi

say() { printf '[quickstart %3ds] %s\n' "$SECONDS" "$*"; }

if [ -e "$run" ]; then
  say "removing what an earlier quickstart left in $run"
  rm -rf "$run"
fi
mkdir -p "$run"

# One thread each: training and evaluation share a small machine, and both models are too small to gain from more.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

daemon="" training="" progress=""
stop() {
  local code=$?
  trap - EXIT INT TERM
  for process in $training $daemon $progress; do kill "$process" 2>/dev/null || true; done
  wait 2>/dev/null || true
  exit "$code"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "a small language: corpus, tokenizer, questions"
"$python" "$demo/language.py" "$run/language"
mkdir -p "$run/helm/scenarios/custom_mcqa"  # where HELM's custom_mcqa looks for the file that helm.conf names
cp "$run/language/helm_mcqa.jsonl" "$run/helm/scenarios/custom_mcqa/"

say "the evaluator begins to watch $run/checkpoints (log: $run/evaluator.log)"
: >"$run/evaluator.log"
"$python" "$repository/evaluator.py" --config "$work_dir/evaluator.yaml" --begin-iteration "$interval" \
  --end-iteration "$iterations" --iteration-interval "$interval" --check-interval 0.1 >"$run/evaluator.log" 2>&1 &
daemon=$!
tail -n +1 -f "$run/evaluator.log" > >(sed -u 's/^/  evaluator | /') 2>/dev/null &
progress=$!  # of tail; sed ends with it

say "training for $iterations iterations, a checkpoint every $interval (log: $run/train.log)"
"$python" "$demo/train.py" --language "$run/language" --save "$run/checkpoints" --log "$run/train.log" \
  --iterations "$iterations" --save-interval "$interval" --threads 1 > >(sed -u 's/^/  training  | /') 2>&1 &
training=$!
# A daemon that dies early (a wrong setting) should not leave the training running unwatched.
while kill -0 "$training" 2>/dev/null; do
  if ! kill -0 "$daemon" 2>/dev/null; then
    code=0
    wait "$daemon" || code=$?
    daemon=""
    say "the evaluator ended before the training, with exit code $code; see $run/evaluator.log"
    exit $((code ? code : 1))
  fi
  sleep 0.5
done
wait "$training" || { say "the training failed; see $run/train.log"; exit 1; }
training=""
say "trained; waiting for the evaluator to record the last checkpoint"

code=0
wait "$daemon" || code=$?
daemon=""
sleep 0.5  # let the last lines of the log through
kill "$progress" 2>/dev/null || true
progress=""
if [ "$code" -ne 0 ]; then
  say "the evaluator ended with exit code $code; see $run/evaluator.log and $run/evaluation/logs/"
  exit "$code"
fi

say "done. Where to look:"
evaluation=$run/evaluation
cat <<END
  report        $evaluation/report.html            (open it in a browser)
  leaderboard   $evaluation/leaderboard.csv
  ledger        $evaluation/ledger.sqlite          (sqlite3 … 'select iteration, task, metric, value, stderr from scores')
  W&B, offline  $evaluation/wandb/                 (wandb sync <its offline-run-… directories> sends them)
  checkpoints   $run/checkpoints
  logs          $run/train.log, $run/evaluator.log, $evaluation/logs/
END
