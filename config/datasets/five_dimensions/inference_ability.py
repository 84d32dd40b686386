"""Inference ability: AFQMC's question pairs, do they ask the same? Zero-shot, whole prompts ranked by perplexity; accuracy."""

_prompt = "语句一：“{sentence1}”\n语句二：“{sentence2}”\n语句一与语句二所询问的内容"

inference_ability_datasets = [
    dict(
        abbr="inference_ability",
        type="AFQMCDataset",
        path=["./data/CLUE/AFQMC/dev.json", "./data/afqmc_public/dev.json"],
        reader_cfg=dict(input_columns=["sentence1", "sentence2"], output_column="label"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template={0: _prompt + "不完全一致", 1: _prompt + "完全一致"}),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
