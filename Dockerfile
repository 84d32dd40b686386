# Fine-tuning on GPUs (demos/finetune). Written after the documentation of its parts; it could not be built or run where
# this project was developed (no Docker, no GPU).
#
#   docker build -t llmops-deepspeed-backend .
#   docker run --gpus all --shm-size 64gb -p 6006:6006 -p 5000:5000 -v /Your/Path/mnt:/app/mnt/ llmops-deepspeed-backend
#
# Below /app/mnt: datasets/{train,test}.jsonl, the model's directory, output_path/. Nothing listens on the ports yet: they
# are for TensorBoard and a server that you start in the container.
FROM pytorch/pytorch:2.11.0-cuda12.8-cudnn9-devel

ENV PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MNT=/app/mnt
WORKDIR /app

# constraints.txt pins a torch without CUDA; the image has its own.
COPY constraints.txt ./
RUN grep -vE '^(torch|torchvision|triton)[=@ ]' constraints.txt > /tmp/constraints.txt \
    && pip install --no-cache-dir -c /tmp/constraints.txt \
        transformers peft accelerate safetensors sentencepiece tokenizers sacrebleu jieba rouge-chinese rouge-score \
        mmengine-lite scipy tabulate pydantic PyYAML requests tqdm \
    && pip install --no-cache-dir deepspeed

COPY autoeval autoeval
COPY recorder recorder
COPY config config
COPY eval eval
COPY demos/finetune demos/finetune

VOLUME /app/mnt
ENTRYPOINT ["demos/finetune/chat_main.sh"]
