"""A Megatron checkpoint that ``python -m autoeval.convert CHECKPOINT_DIR OUTPUT_DIR --tokenizer ...`` has converted.

Copy this file, change abbr and path. The daemon leaves such a directory at <work_dir>/<model>/iter_NNNNNNN/hf.
"""

models = [
    dict(
        type="HuggingFaceBaseModel",
        abbr="my-model-iter-2000",
        path="./outputs/my-project/my-model/iter_0002000/hf",
        # Half precision is computed in fp32 on a CPU; "bfloat16" here would change that.
        dtype="auto",
        max_out_len=256,
        run_cfg=dict(num_gpus=1),
    )
]
