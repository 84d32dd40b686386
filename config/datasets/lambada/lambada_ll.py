"""LAMBADA: the last word given the passage; bits per byte, perplexity of the word and whether greedy decoding gives it."""

lambada_ll_datasets = [
    dict(
        abbr="lambada_ll",
        type="LambadaDataset",
        path="./data/lambada/test.jsonl",
        reader_cfg=dict(input_columns=["prompt"], output_column="label"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="{prompt}"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="LLInferencer", continuation=" {label}"),
        ),
        eval_cfg=dict(evaluator=dict(type="GreedyEvaluator")),
    )
]
