"""AFQMC (CLUE), zero-shot, the letter of the answer generated."""

afqmc_gen_datasets = [
    dict(
        abbr="afqmc-dev_gen",
        type="AFQMCDataset",
        path="./data/CLUE/AFQMC/dev.json",
        reader_cfg=dict(input_columns=["sentence1", "sentence2"], output_column="label"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(
                    round=[
                        dict(
                            role="HUMAN",
                            prompt="语句一：“{sentence1}”\n语句二：“{sentence2}”\n语句一与语句二所询问的内容是否完全一致？\nA. 不完全一致\nB. 完全一致\n请从“A”，“B”中进行选择。\n答：",
                        )
                    ]
                ),
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=8, stop=["\n"]),
        ),
        eval_cfg=dict(
            evaluator=dict(type="AccEvaluator"),
            pred_postprocessor=dict(type="first-capital"),
            dataset_postprocessor=dict(type="to-letter", labels=["0", "1"]),
        ),
    )
]
