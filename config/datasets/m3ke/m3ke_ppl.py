"""M3KE, zero-shot on the questions whose answers are public (dev), whole prompts ranked by perplexity. OpenCompass has no M3KE: the prompt is ours."""

_question = "题目：{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\n答案："

m3ke_datasets = [
    dict(
        abbr="m3ke",
        type="M3KEDataset",
        path="./data/m3ke",
        test="dev",
        reader_cfg=dict(input_columns=["question", "A", "B", "C", "D", "subject"], output_column="answer"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template={
                    label: "以下是关于{subject}的单项选择题，请给出正确答案。\n" + _question + label for label in "ABCD"
                },
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator"), group_column="subject"),
    )
]
