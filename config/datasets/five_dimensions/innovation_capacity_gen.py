"""Innovation capacity of a model that only generates (a chat server): the letter of the answer to M3KE's questions."""

innovation_capacity_gen_datasets = [
    dict(
        abbr="innovation_capacity",
        type="M3KEDataset",
        path=["./data/m3ke", "./data/M3KE"],
        test="dev",
        reader_cfg=dict(input_columns=["question", "A", "B", "C", "D", "subject"], output_column="answer"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(
                    round=[
                        dict(
                            role="HUMAN",
                            prompt="以下是关于{subject}的单项选择题，请只回答选项字母。\n"
                            "题目：{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\n答案：",
                        )
                    ]
                ),
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=16),
        ),
        eval_cfg=dict(
            evaluator=dict(type="AccEvaluator"),
            pred_postprocessor=dict(type="first-option", options="ABCD"),
            group_column="subject",
        ),
    )
]
