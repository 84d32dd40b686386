"""Chinese language skill: the keywords of TNEWS's headlines, zero-shot; corpus BLEU of generated against true keywords.

Headlines for which the file names no keyword are left out. ``bleu`` is over Chinese characters (sacrebleu's ``zh``),
``bleu_jieba`` over words.
"""

chinese_language_skill_datasets = [
    dict(
        abbr="chinese_language_skill",
        type="TNewsDataset",
        path=[
            "./data/CLUE/tnews_public/dev.json",
            "./data/tnews_public/dev.json",
            "./data/FewCLUE/tnews/test_public.json",
        ],
        keywords=True,
        reader_cfg=dict(input_columns=["sentence"], output_column="keywords"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(
                    round=[
                        dict(
                            role="HUMAN",
                            prompt="请写出下面这条新闻的关键词，关键词之间用英文逗号分隔。\n新闻：{sentence}\n关键词：",
                        )
                    ]
                ),
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=32, stop=["\n"]),
        ),
        eval_cfg=dict(
            evaluator=dict(type="BleuEvaluator", tokenize="zh", also=["jieba"]),
            pred_postprocessor=dict(type="first-line"),
        ),
    )
]
