"""OpenBookQA, zero-shot, choices ranked by their log-likelihood (acc) and per byte (acc_norm)."""

obqa_ll_datasets = [
    dict(
        abbr="openbookqa_ll",
        type="OBQADataset",
        path="./data/openbookqa/Main/test.jsonl",
        reader_cfg=dict(input_columns=["question"], output_column="gold", choices_column="choices"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="{question}"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="LLInferencer", continuation=" {choice}"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
