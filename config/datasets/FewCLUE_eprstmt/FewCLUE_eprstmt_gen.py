"""EPRSTMT (FewCLUE), zero-shot, the letter of the answer generated."""

eprstmt_gen_datasets = [
    dict(
        abbr="eprstmt-test_gen",
        type="eprstmtDataset",
        path="./data/FewCLUE/eprstmt/test_public.json",
        reader_cfg=dict(input_columns=["sentence"], output_column="label"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(
                    round=[
                        dict(
                            role="HUMAN",
                            prompt="内容：“{sentence}”\n请对上述内容进行情绪分类。\nA. 积极\nB. 消极\n请从“A”，“B”中进行选择。\n答：",
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
            dataset_postprocessor=dict(type="to-letter", labels=["Positive", "Negative"]),
        ),
    )
]
