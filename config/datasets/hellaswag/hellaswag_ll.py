"""HellaSwag, zero-shot, endings ranked by their log-likelihood (acc) and per byte (acc_norm)."""

hellaswag_ll_datasets = [
    dict(
        abbr="hellaswag_ll",
        type="HellaSwagDataset",
        path="./data/hellaswag/hellaswag.jsonl",
        reader_cfg=dict(input_columns=["ctx"], output_column="label", choices_column="choices"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="{ctx}"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="LLInferencer", continuation=" {choice}"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
