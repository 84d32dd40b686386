"""BoolQ (SuperGLUE), zero-shot, whole prompts ranked by perplexity."""

boolq_datasets = [
    dict(
        abbr="BoolQ",
        type="SuperGLUEBoolQDataset",
        path="./data/SuperGLUE/BoolQ/val.jsonl",
        reader_cfg=dict(input_columns=["question", "passage"], output_column="answer"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template={
                    "no": "Passage: {passage}\nQuestion: {question}?\nAnswer: No",
                    "yes": "Passage: {passage}\nQuestion: {question}?\nAnswer: Yes",
                },
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
