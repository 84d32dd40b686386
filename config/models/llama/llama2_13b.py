"""Llama 2 13 B from Meta's own download: consolidated.*.pth and params.json, with tokenizer.model."""

models = [
    dict(
        type="Llama2",
        abbr="llama-2-13b",
        path="./models/llama2/llama/llama-2-13b/",
        tokenizer_path="./models/llama2/llama/tokenizer.model",
        max_seq_len=4096,
        max_out_len=256,
        batch_size=8,
        run_cfg=dict(num_gpus=1),
    )
]
