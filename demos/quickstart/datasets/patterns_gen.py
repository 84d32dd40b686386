"""Copying, first, last and counting, on lists that the corpus does not have: generated, and matched exactly."""

patterns_datasets = [
    dict(
        abbr="patterns",
        type="JsonlDataset",
        path="patterns_gen.jsonl",  # under icl.data_dir of evaluator.yaml
        reader_cfg=dict(input_columns=["prompt"], output_column="answer"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="{prompt}"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=6, stop=["\n"]),
        ),
        eval_cfg=dict(evaluator=dict(type="EMEvaluator")),
    )
]
