"""Winogrande, zero-shot: what follows the blank, ranked by its log-likelihood given the sentence with each choice."""

winogrande_ll_datasets = [
    dict(
        abbr="winogrande_ll",
        type="WinograndeDataset",
        path="./data/winogrande",
        reader_cfg=dict(input_columns=["prefix", "ending"], output_column="gold", choices_column="choices"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="{prefix}{choice}"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="LLInferencer", continuation=" {ending}"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
