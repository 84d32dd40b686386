"""ARC-Easy, zero-shot, the letter of the answer generated."""

ARC_e_gen_datasets = [
    dict(
        abbr="ARC-e_gen",
        type="AI2ARCDataset",
        path="./data/ARC/ARC-e/ARC-Easy-Dev.jsonl",
        reader_cfg=dict(input_columns=["question", "options"], output_column="letter"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(round=[dict(role="HUMAN", prompt="Question: {question}\n{options}\nAnswer:")]),
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=16, stop=["\n"]),
        ),
        eval_cfg=dict(
            evaluator=dict(type="AccEvaluator"), pred_postprocessor=dict(type="first-option", options="ABCDE")
        ),
    )
]
