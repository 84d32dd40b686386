"""CMRC 2018 (CLUE), zero-shot reading comprehension: character F1 and exact match as the benchmark defines them."""

CMRC_datasets = [
    dict(
        abbr="CMRC_dev",
        type="CMRCDataset",
        path="./data/CLUE/CMRC/dev.json",
        reader_cfg=dict(input_columns=["context", "question"], output_column="answers"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(
                    round=[
                        dict(
                            role="HUMAN",
                            prompt="根据文章回答问题。你的答案应该尽可能简练，请以“答案是”开头的句式作答。\n"
                            "文章：{context}\n问：{question}\n答：",
                        )
                    ]
                ),
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=50, stop=["\n"]),
        ),
        eval_cfg=dict(evaluator=dict(type="CMRCEvaluator"), pred_postprocessor=dict(type="cmrc")),
    )
]
