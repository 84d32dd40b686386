"""EPRSTMT (FewCLUE), zero-shot: the feeling of a review. Whole prompts ranked by perplexity."""

eprstmt_datasets = [
    dict(
        abbr="eprstmt-test",
        type="eprstmtDataset",
        path="./data/FewCLUE/eprstmt/test_public.json",
        reader_cfg=dict(input_columns=["sentence"], output_column="label"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template={
                    "Negative": "内容：“{sentence}”。情绪分类：消极。",
                    "Positive": "内容：“{sentence}”。情绪分类：积极。",
                },
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
