"""BoolQ (SuperGLUE), zero-shot, "yes" and "no" ranked by their log-likelihood."""

boolq_ll_datasets = [
    dict(
        abbr="BoolQ_ll",
        type="SuperGLUEBoolQDataset",
        path="./data/SuperGLUE/BoolQ/val.jsonl",
        reader_cfg=dict(input_columns=["question", "passage"], output_column="answer"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="{passage}\nQuestion: {question}?\nAnswer:"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="LLInferencer", continuation={"no": " no", "yes": " yes"}),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
