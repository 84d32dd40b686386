"""Social IQa, zero-shot, the letter of the answer generated."""

siqa_gen_datasets = [
    dict(
        abbr="siqa_gen",
        type="siqaDataset",
        path="./data/siqa",
        reader_cfg=dict(input_columns=["context", "question"], output_column="letter"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(
                    round=[
                        dict(
                            role="HUMAN",
                            prompt="{context}\nQuestion: {question}\nA. {answerA}\nB. {answerB}\nC. {answerC}\nAnswer:",
                        ),
                    ]
                ),
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=16, stop=["\n"]),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator"), pred_postprocessor=dict(type="first-option", options="ABC")),
    )
]
