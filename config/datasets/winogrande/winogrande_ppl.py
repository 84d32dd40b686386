"""Winogrande, zero-shot, sentences with the blank filled in, ranked by perplexity."""

winogrande_datasets = [
    dict(
        abbr="winogrande",
        type="WinograndeDataset",
        path="./data/winogrande",
        reader_cfg=dict(input_columns=["opt1", "opt2"], output_column="answer"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template={1: "{opt1}", 2: "{opt2}"}),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
