"""As mmlu_gen, on those subjects whose test file is there: not comparable with the whole of MMLU. Five-shot, the letter generated."""

_question = "{input}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nAnswer:"

mmlu_available_gen_datasets = [
    dict(
        abbr="mmlu_available_gen",
        type="MMLUDataset",
        path="./data/mmlu",
        subjects="available",
        reader_cfg=dict(input_columns=["input", "A", "B", "C", "D", "topic"], output_column="target"),
        infer_cfg=dict(
            ice_template=dict(
                type="PromptTemplate",
                template=dict(
                    round=[dict(role="HUMAN", prompt=_question), dict(role="BOT", prompt="{target}")],
                ),
            ),
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(
                    begin=[
                        dict(
                            role="SYSTEM",
                            fallback_role="HUMAN",
                            prompt="The following are multiple choice questions (with answers) about {topic}.\n",
                        ),
                        "</E>",
                    ],
                    round=[dict(role="HUMAN", prompt=_question)],
                ),
                ice_token="</E>",
            ),
            retriever=dict(type="FixKRetriever", fix_id_list=[0, 1, 2, 3, 4], group_column="subject"),
            inferencer=dict(type="GenInferencer", max_out_len=8, stop=["\n\n"]),
        ),
        eval_cfg=dict(
            evaluator=dict(type="AccEvaluator"),
            pred_postprocessor=dict(type="first-option", options="ABCD"),
            group_column="subject",
        ),
    )
]
