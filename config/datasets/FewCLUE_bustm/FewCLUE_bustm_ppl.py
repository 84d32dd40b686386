"""BUSTM (FewCLUE), zero-shot: do two sentences mean the same? Whole prompts ranked by perplexity."""

bustm_datasets = [
    dict(
        abbr="bustm-test",
        type="bustmDataset",
        path="./data/FewCLUE/bustm/test_public.json",
        reader_cfg=dict(input_columns=["sentence1", "sentence2"], output_column="label"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template={
                    0: "“{sentence1}”和“{sentence2}”两句话说的毫不相关。",
                    1: "“{sentence1}”和“{sentence2}”两句话说的一个意思。",
                },
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
