"""LAMBADA: the last word of a passage, generated."""

lambada_datasets = [
    dict(
        abbr="lambada",
        type="LambadaDataset",
        path="./data/lambada/test.jsonl",
        reader_cfg=dict(input_columns=["prompt"], output_column="label"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="{prompt}"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=5),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator"), pred_postprocessor=dict(type="lambada")),
    )
]
