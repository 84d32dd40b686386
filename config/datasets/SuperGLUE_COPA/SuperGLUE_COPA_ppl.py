"""COPA (SuperGLUE), zero-shot, whole prompts ranked by perplexity."""

COPA_datasets = [
    dict(
        abbr="COPA",
        type="COPADataset",
        path="./data/SuperGLUE/COPA/val.jsonl",
        reader_cfg=dict(input_columns=["premise", "connector"], output_column="label", choices_column="choices"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="{premise} {connector} {choice}"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
