#!/usr/bin/env bash
# Fine-tunes a chat model on mnt/datasets/{train,test}.jsonl into mnt/output_path; README.md has every parameter.
#
#   demos/finetune/chat_main.sh                                   # what is set below
#   MNT=/Your/Path/mnt demos/finetune/chat_main.sh --mode qwen1.5 --model_name_or_path /models/Qwen1.5-14B
#
# Arguments given here go before those set below. Several GPUs are used through torchrun. PYTHON chooses the interpreter;
# the default is the repository's .venv when it is there.
set -euo pipefail

SCENARIO="${SCENARIO:-general}"      # "general": whole conversations; "faq": each question with its answer alone
MNT="${MNT:-mnt}"                    # datasets/, the model's directory, output_path/
MODEL="${MODEL:-$MNT/Llama-2-13b-chat-hf}"
# export CUDA_VISIBLE_DEVICES=0,1    # which GPUs; default: all

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/../../.venv/bin/python}
[[ -n "${PYTHON:-}" || -x "$python" ]] || python=python3
case "${1:-}" in -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exec "$python" "$here/finetune.py" --help ;; esac

arguments=(
  --scenario "$SCENARIO"
  --model_name_or_path "$MODEL"
  --data_path "$MNT/datasets"
  --output_path "$MNT/output_path"
  --mode "auto"                      # auto | glm | glm2 | glm3 | baichuan2_13b | qwen1.5
  --train_type "lora"                # lora | all
  --lora_module_name "gate_proj,down_proj,up_proj"
)
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -gt 1 ]; then
  exec "$python" -m torch.distributed.run --standalone --nproc_per_node "$gpus" "$here/finetune.py" \
    "${arguments[@]}" --deepspeed "$here/deepspeed_zero2.json" "$@"
fi
exec "$python" "$here/finetune.py" "${arguments[@]}" "$@"
