"""HellaSwag, zero-shot, the letter of the ending generated."""

hellaswag_gen_datasets = [
    dict(
        abbr="hellaswag_gen",
        type="HellaSwagDataset",
        path="./data/hellaswag/hellaswag.jsonl",
        reader_cfg=dict(input_columns=["ctx", "A", "B", "C", "D"], output_column="letter"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(
                    round=[
                        dict(
                            role="HUMAN",
                            prompt="{ctx}\nQuestion: Which ending makes the most sense?\n"
                            "A. {A}\nB. {B}\nC. {C}\nD. {D}\nAnswer:",
                        )
                    ]
                ),
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=16, stop=["\n"]),
        ),
        eval_cfg=dict(
            evaluator=dict(type="AccEvaluator"), pred_postprocessor=dict(type="first-option", options="ABCD")
        ),
    )
]
