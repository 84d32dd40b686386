"""ARC-Challenge, zero-shot, choices ranked by their log-likelihood (acc) and per byte (acc_norm)."""

ARC_c_ll_datasets = [
    dict(
        abbr="ARC-c_ll",
        type="AI2ARCDataset",
        path="./data/ARC/ARC-c/ARC-Challenge-Test.jsonl",
        reader_cfg=dict(input_columns=["question"], output_column="gold", choices_column="choices"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="Question: {question}\nAnswer:"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="LLInferencer", continuation=" {choice}"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
