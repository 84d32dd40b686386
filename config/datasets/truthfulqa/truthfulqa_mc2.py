"""TruthfulQA, zero-shot, the share of probability that the correct answers have (mc2)."""

truthfulqa_mc2_datasets = [
    dict(
        abbr="truthfulqa_mc2",
        type="TruthfulQADataset",
        path="./data/truthfulqa/TruthfulQA.csv",
        reader_cfg=dict(input_columns=["question"], output_column="mc2_gold", choices_column="mc2_choices"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="Q: {question}\nA:"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="LLInferencer", continuation=" {choice}"),
        ),
        eval_cfg=dict(evaluator=dict(type="MassEvaluator")),
    )
]
