"""HumanEval, pass@1 and pass@10 from ten samples at temperature 0.8. ``--allow-code-execution``."""

humaneval_passk_datasets = [
    dict(
        abbr="openai_humaneval_passk",
        type="HumanevalDataset",
        path="./data/humaneval/human-eval-v2-20210705.jsonl",
        reader_cfg=dict(input_columns=["prompt"], output_column="task_id"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="{prompt}"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(
                type="GenInferencer",
                max_out_len=512,
                stop=["\nclass ", "\ndef ", "\n#", "\nif ", "\nprint"],
                temperature=0.8,
                top_p=0.95,
                num_return_sequences=10,
            ),
        ),
        eval_cfg=dict(evaluator=dict(type="HumanEvalEvaluator", k=[1, 10])),
    )
]
