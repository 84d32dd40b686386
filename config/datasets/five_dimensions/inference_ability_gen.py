"""Inference ability of a model that only generates (a chat server): the letter of the answer to AFQMC's pairs."""

inference_ability_gen_datasets = [
    dict(
        abbr="inference_ability",
        type="AFQMCDataset",
        path=["./data/CLUE/AFQMC/dev.json", "./data/afqmc_public/dev.json"],
        reader_cfg=dict(input_columns=["sentence1", "sentence2"], output_column="label"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(
                    round=[
                        dict(
                            role="HUMAN",
                            prompt="语句一：“{sentence1}”\n语句二：“{sentence2}”\n语句一与语句二所询问的内容是否完全一致？\n"
                            "A. 不完全一致\nB. 完全一致\n请只回答选项字母。\n答案：",
                        )
                    ]
                ),
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=16),
        ),
        eval_cfg=dict(
            evaluator=dict(type="AccEvaluator"),
            pred_postprocessor=dict(type="first-option", options="AB"),
            dataset_postprocessor=dict(type="to-letter", labels=["0", "1"]),
        ),
    )
]
