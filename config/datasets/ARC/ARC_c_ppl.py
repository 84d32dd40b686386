"""ARC-Challenge, zero-shot, whole prompts ranked by perplexity; three to five choices an item."""

ARC_c_datasets = [
    dict(
        abbr="ARC-c",
        type="AI2ARCDataset",
        path="./data/ARC/ARC-c/ARC-Challenge-Test.jsonl",
        reader_cfg=dict(input_columns=["question"], output_column="gold", choices_column="choices"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="Question: {question}\nAnswer: {choice}"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
