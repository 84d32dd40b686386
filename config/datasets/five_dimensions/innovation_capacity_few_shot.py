"""Innovation capacity, five-shot: M3KE's test questions, each after five of the same subject from dev; accuracy."""

_question = "题目：{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\n答案："

innovation_capacity_few_shot_datasets = [
    dict(
        abbr="innovation_capacity",
        type="M3KEDataset",
        path=["./data/m3ke", "./data/M3KE"],
        test="test",
        reader_cfg=dict(input_columns=["question", "A", "B", "C", "D", "subject"], output_column="answer"),
        infer_cfg=dict(
            ice_template=dict(type="PromptTemplate", template={label: _question + label + "\n" for label in "ABCD"}),
            prompt_template=dict(
                type="PromptTemplate",
                template={
                    label: "以下是关于{subject}的单项选择题，请给出正确答案。\n</E>" + _question + label
                    for label in "ABCD"
                },
                ice_token="</E>",
            ),
            retriever=dict(type="FixKRetriever", fix_id_list=[0, 1, 2, 3, 4], group_column="subject"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator"), group_column="subject"),
    )
]
