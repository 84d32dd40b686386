"""Social IQa, zero-shot, answers ranked by their log-likelihood (acc) and per byte (acc_norm)."""

siqa_ll_datasets = [
    dict(
        abbr="siqa_ll",
        type="siqaDataset",
        path="./data/siqa",
        reader_cfg=dict(input_columns=["context", "question"], output_column="gold", choices_column="choices"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="Q: {context} {question}\nA:"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="LLInferencer", continuation=" {choice}"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
