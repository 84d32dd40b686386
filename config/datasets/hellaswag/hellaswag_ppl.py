"""HellaSwag, zero-shot, whole prompts ranked by perplexity."""

hellaswag_datasets = [
    dict(
        abbr="hellaswag",
        type="HellaSwagDataset",
        path="./data/hellaswag/hellaswag.jsonl",
        reader_cfg=dict(input_columns=["ctx", "A", "B", "C", "D"], output_column="label"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template={index: "{ctx} {" + letter + "}" for index, letter in enumerate("ABCD")},
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
