"""Social IQa, zero-shot, whole prompts ranked by perplexity."""

siqa_datasets = [
    dict(
        abbr="siqa",
        type="siqaDataset",
        path="./data/siqa",
        reader_cfg=dict(input_columns=["context", "question"], output_column="label"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template={
                    number: dict(
                        round=[
                            dict(role="HUMAN", prompt="{context}\nQuestion: {question}\nAnswer:"),
                            dict(role="BOT", prompt="{answer" + letter + "}"),
                        ]
                    )
                    for number, letter in enumerate("ABC", start=1)
                },
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
