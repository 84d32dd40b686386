"""BoolQ (SuperGLUE), zero-shot, the letter of the answer generated."""

boolq_gen_datasets = [
    dict(
        abbr="BoolQ_gen",
        type="SuperGLUEBoolQDataset",
        path="./data/SuperGLUE/BoolQ/val.jsonl",
        reader_cfg=dict(input_columns=["question", "passage"], output_column="label"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(
                    round=[
                        dict(role="HUMAN", prompt="{passage}\nQuestion: {question}?\nA. Yes\nB. No\nAnswer:"),
                    ]
                ),
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=8, stop=["\n"]),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator"), pred_postprocessor=dict(type="first-capital")),
    )
]
