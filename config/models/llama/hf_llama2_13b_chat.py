"""Llama 2 13 B, chat, with its tokenizer's chat template."""

models = [
    dict(
        type="HuggingFacewithChatTemplate",
        abbr="llama-2-13b-chat-hf",
        path="meta-llama/Llama-2-13b-chat-hf",
        max_seq_len=4096,
        max_out_len=256,
        batch_size=8,
        run_cfg=dict(num_gpus=1),
    )
]
