"""PIQA, zero-shot, whole prompts ranked by perplexity."""

piqa_datasets = [
    dict(
        abbr="piqa",
        type="PIQADataset",
        path="./data/piqa",
        reader_cfg=dict(input_columns=["goal", "sol1", "sol2"], output_column="answer"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template={0: "{goal} {sol1}", 1: "{goal} {sol2}"}),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
