"""Innovation capacity: M3KE's questions of 71 subjects, zero-shot on those whose answers are public (dev); accuracy."""

_question = (
    "以下是关于{subject}的单项选择题，请给出正确答案。\n题目：{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\n答案："
)

innovation_capacity_datasets = [
    dict(
        abbr="innovation_capacity",
        type="M3KEDataset",
        path=["./data/m3ke", "./data/M3KE"],
        test="dev",
        reader_cfg=dict(input_columns=["question", "A", "B", "C", "D", "subject"], output_column="answer"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template={label: _question + label for label in "ABCD"}),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator"), group_column="subject"),
    )
]
