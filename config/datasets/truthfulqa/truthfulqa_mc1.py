"""TruthfulQA, zero-shot, the best answer against the incorrect ones (acc is MC1)."""

truthfulqa_mc1_datasets = [
    dict(
        abbr="truthfulqa_mc1",
        type="TruthfulQADataset",
        path="./data/truthfulqa/TruthfulQA.csv",
        reader_cfg=dict(input_columns=["question"], output_column="mc1_gold", choices_column="mc1_choices"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="Q: {question}\nA:"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="LLInferencer", continuation=" {choice}"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
