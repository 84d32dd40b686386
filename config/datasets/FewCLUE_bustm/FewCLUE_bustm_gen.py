"""BUSTM (FewCLUE), zero-shot, the letter of the answer generated."""

bustm_gen_datasets = [
    dict(
        abbr="bustm-test_gen",
        type="bustmDataset",
        path="./data/FewCLUE/bustm/test_public.json",
        reader_cfg=dict(input_columns=["sentence1", "sentence2"], output_column="label"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(
                    round=[
                        dict(
                            role="HUMAN",
                            prompt="语句一：“{sentence1}”\n语句二：“{sentence2}”\n请判断语句一和语句二说的是否是一个意思？\nA. 无关\nB. 相关\n请从“A”，“B”中进行选择。\n答：",
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
