#!/usr/bin/env bash
# GPT-2 1.3B with Megatron-LM: 200,000 iterations, saved every 2,000 into the directory that evaluator.yaml watches.
#
#   GPUS_PER_NODE=8 DATA_PATH=/data/corpus/corpus_text_document demos/auto_eval_helm/pretrain_example.sh [--dry-run]
#
# --dry-run looks whether all files are there and prints the command. Relative paths start where you are.
# From the environment: MEGATRON_HOME (thirdparty/setup_megatron.sh --scripts makes the default), CHECKPOINT_PATH,
# DATA_PATH (prefix of a .bin and an .idx), VOCAB_FILE, MERGE_FILE, GPUS_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR,
# MASTER_PORT, TENSOR_PARALLEL. Further arguments go to pretrain_gpt.py as they are.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case "${1:-}" in -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;; esac
dry_run=""
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
# Absolute, because pretrain_gpt.py is started in Megatron-LM's own directory.
megatron=$(realpath -m "${MEGATRON_HOME:-$here/../../thirdparty/Megatron-LM}")
checkpoints=$(realpath -m "${CHECKPOINT_PATH:-/data/checkpoints/GPT2}")
data=$(realpath -m "${DATA_PATH:-/data/corpus/corpus_text_document}")
vocabulary=$(realpath -m "${VOCAB_FILE:-/data/gpt2/vocab.json}")
merges=$(realpath -m "${MERGE_FILE:-/data/gpt2/merges.txt}")
fail() { echo "pretrain_example.sh: $*" >&2; exit 1; }
[ -f "$megatron/pretrain_gpt.py" ] || fail "no pretrain_gpt.py in $megatron; run thirdparty/setup_megatron.sh --scripts"
for file in "$data.bin" "$data.idx" "$vocabulary" "$merges"; do [ -f "$file" ] || fail "$file does not exist"; done

export CUDA_DEVICE_MAX_CONNECTIONS=1
launch=(
  --nproc_per_node "${GPUS_PER_NODE:-8}" --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}"
  --master_addr "${MASTER_ADDR:-localhost}" --master_port "${MASTER_PORT:-6000}"
)
model=(
  --num-layers 24 --hidden-size 2048 --num-attention-heads 16 --seq-length 2048 --max-position-embeddings 2048
  --tensor-model-parallel-size "${TENSOR_PARALLEL:-1}" --transformer-impl local --bf16
)
training=(
  --micro-batch-size 4 --global-batch-size 1024 --train-iters 200000
  --lr 2.0e-4 --min-lr 2.0e-5 --lr-decay-style cosine --lr-warmup-iters 2000 --lr-decay-iters 200000
  --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.95 --clip-grad 1.0 --attention-dropout 0 --hidden-dropout 0
  --use-distributed-optimizer --recompute-activations
)
files=(
  --data-path "$data" --split 990,8,2 --tokenizer-type GPT2BPETokenizer --vocab-file "$vocabulary" --merge-file "$merges"
  --save "$checkpoints" --load "$checkpoints" --save-interval 2000 --ckpt-format torch_dist
  --log-interval 10 --eval-interval 2000 --eval-iters 10
)
command=(torchrun "${launch[@]}" pretrain_gpt.py "${model[@]}" "${training[@]}" "${files[@]}" "$@")
if [ -n "$dry_run" ]; then
  printf 'cd %q &&' "$megatron"
  printf ' %q' "${command[@]}"
  echo
  exit 0
fi
mkdir -p "$checkpoints"
cd "$megatron"
exec "${command[@]}"
