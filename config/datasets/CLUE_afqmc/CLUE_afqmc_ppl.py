"""AFQMC (CLUE), zero-shot: do two questions ask the same? Whole prompts ranked by perplexity."""

_prompt = "语句一：“{sentence1}”\n语句二：“{sentence2}”\n语句一与语句二是关于蚂蚁金融产品的疑问，两者所询问的内容"

afqmc_datasets = [
    dict(
        abbr="afqmc-dev",
        type="AFQMCDataset",
        path="./data/CLUE/AFQMC/dev.json",
        reader_cfg=dict(input_columns=["sentence1", "sentence2"], output_column="label"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template={0: _prompt + "不完全一致", 1: _prompt + "完全一致"}),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
