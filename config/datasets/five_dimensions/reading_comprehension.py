"""Reading comprehension: CMRC 2018's questions on a passage, zero-shot; corpus BLEU of the generated answers.

``bleu`` is over Chinese characters (sacrebleu's ``zh``), ``bleu_jieba`` over words.
"""

reading_comprehension_datasets = [
    dict(
        abbr="reading_comprehension",
        type="CMRCDataset",
        path=["./data/CLUE/CMRC/dev.json", "./data/cmrc2018/cmrc2018_dev.json", "./data/cmrc2018_dev.json"],
        reader_cfg=dict(input_columns=["context", "question"], output_column="answers"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(
                    round=[
                        dict(
                            role="HUMAN",
                            prompt="阅读文章，用文章中的原话简短地回答问题。\n文章：{context}\n问题：{question}\n答案：",
                        )
                    ]
                ),
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=48, stop=["\n"]),
        ),
        eval_cfg=dict(
            evaluator=dict(type="BleuEvaluator", tokenize="zh", also=["jieba"]), pred_postprocessor=dict(type="cmrc")
        ),
    )
]
