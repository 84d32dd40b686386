"""ARC-Easy, zero-shot, whole prompts ranked by perplexity; three to five choices an item."""

ARC_e_datasets = [
    dict(
        abbr="ARC-e",
        type="AI2ARCDataset",
        path="./data/ARC/ARC-e/ARC-Easy-Dev.jsonl",
        reader_cfg=dict(input_columns=["question"], output_column="gold", choices_column="choices"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="Question: {question}\nAnswer: {choice}"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
