"""PIQA, zero-shot, the letter of the solution generated."""

piqa_gen_datasets = [
    dict(
        abbr="piqa_gen",
        type="PIQADataset",
        path="./data/piqa",
        reader_cfg=dict(input_columns=["goal", "sol1", "sol2"], output_column="letter"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(
                    round=[dict(role="HUMAN", prompt="{goal}\nA. {sol1}\nB. {sol2}\nAnswer with A or B.\nAnswer:")]
                ),
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=16, stop=["\n"]),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator"), pred_postprocessor=dict(type="first-option", options="AB")),
    )
]
