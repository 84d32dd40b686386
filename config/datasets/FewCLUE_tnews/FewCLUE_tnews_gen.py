"""TNEWS (FewCLUE), zero-shot, the letter of the class generated."""

from mmengine.config import read_base

with read_base():
    from ._tnews_labels import tnews_labels

tnews_gen_datasets = [
    dict(
        abbr="tnews-test_gen",
        type="TNewsDataset",
        path="./data/FewCLUE/tnews/test_public.json",
        labels=tnews_labels,
        reader_cfg=dict(input_columns=["sentence", "options"], output_column="letter"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(
                    round=[
                        dict(
                            role="HUMAN",
                            prompt="新闻内容：{sentence}\n请判断上述内容属于哪一类新闻？\n{options}\n请从以上选项中选择一个。\n答：",
                        )
                    ]
                ),
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=8, stop=["\n"]),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator"), pred_postprocessor=dict(type="first-capital")),
    )
]
