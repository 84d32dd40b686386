"""Llama 2 70 B, base, in Hugging Face's format: below ./models, or in the Hugging Face cache."""

models = [
    dict(
        type="HuggingFaceBaseModel",
        abbr="llama-2-70b-hf",
        path="meta-llama/Llama-2-70b-hf",
        max_seq_len=4096,
        max_out_len=256,
        batch_size=8,
        run_cfg=dict(num_gpus=1),
    )
]
