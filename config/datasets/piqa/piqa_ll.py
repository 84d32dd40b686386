"""PIQA, zero-shot, solutions ranked by their log-likelihood (acc) and per byte (acc_norm)."""

piqa_ll_datasets = [
    dict(
        abbr="piqa_ll",
        type="PIQADataset",
        path="./data/piqa",
        reader_cfg=dict(input_columns=["goal"], output_column="answer", choices_column="choices"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="Question: {goal}\nAnswer:"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="LLInferencer", continuation=" {choice}"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
