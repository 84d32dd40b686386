"""MMLU, five-shot, all 57 subjects, whole prompts ranked by perplexity."""

_question = "{input}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nAnswer:"

mmlu_datasets = [
    dict(
        abbr="mmlu",
        type="MMLUDataset",
        path="./data/mmlu",
        subjects="all",
        reader_cfg=dict(input_columns=["input", "A", "B", "C", "D", "topic"], output_column="target"),
        infer_cfg=dict(
            ice_template=dict(
                type="PromptTemplate", template={label: _question + " " + label + "\n" for label in "ABCD"}
            ),
            prompt_template=dict(
                type="PromptTemplate",
                template={
                    label: "The following are multiple choice questions (with answers) about {topic}.\n\n</E>"
                    + _question
                    + " "
                    + label
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
