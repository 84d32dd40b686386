"""WikiText-2 (validation), every article as it is: bits per byte, byte and word perplexity."""

wikitext_datasets = [
    dict(
        abbr="wikitext",
        type="TextDataset",
        # The corpus under ./data, or beside it.
        path=["./data/wikitext-2/valid.txt", "./data/../corpora/wikitext-2/valid.txt"],
        documents="wikitext",
        reader_cfg=dict(input_columns=["text"]),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="{text}"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLOnlyInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="BPBEvaluator")),
    )
]
