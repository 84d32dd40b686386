"""OpenBookQA, zero-shot, whole prompts ranked by perplexity."""

obqa_datasets = [
    dict(
        abbr="openbookqa",
        type="OBQADataset",
        path="./data/openbookqa/Main/test.jsonl",
        reader_cfg=dict(input_columns=["question"], output_column="gold", choices_column="choices"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="{question} {choice}"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
