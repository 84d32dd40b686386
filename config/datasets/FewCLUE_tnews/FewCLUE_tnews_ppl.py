"""TNEWS (FewCLUE), zero-shot: the class of a headline, 15 of them. Whole prompts ranked by perplexity."""

from mmengine.config import read_base

with read_base():
    from ._tnews_labels import tnews_labels

tnews_datasets = [
    dict(
        abbr="tnews-test",
        type="TNewsDataset",
        path="./data/FewCLUE/tnews/test_public.json",
        labels=tnews_labels,
        reader_cfg=dict(input_columns=["sentence"], output_column="label_desc"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template={label: "{sentence}\n这条新闻的类别是：" + name for label, name in tnews_labels.items()},
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
