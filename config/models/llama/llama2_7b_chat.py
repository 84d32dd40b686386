"""Llama 2 7 B, chat, from Meta's own download; the turns are written as Meta's code writes them."""

models = [
    dict(
        type="Llama2",
        abbr="llama-2-7b-chat",
        path="./models/llama2/llama/llama-2-7b-chat/",
        tokenizer_path="./models/llama2/llama/tokenizer.model",
        meta_template=dict(
            round=[
                dict(role="HUMAN", begin="[INST] ", end=" [/INST]"),
                dict(role="BOT", begin=" ", end=" ", generate=True),
            ],
        ),
        end_str="[INST]",
        max_seq_len=4096,
        max_out_len=256,
        batch_size=8,
        run_cfg=dict(num_gpus=1),
    )
]
