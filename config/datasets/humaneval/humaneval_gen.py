"""HumanEval, pass@1 of greedy completions. Scoring runs what the model wrote: ``--allow-code-execution``."""

humaneval_datasets = [
    dict(
        abbr="openai_humaneval",
        type="HumanevalDataset",
        path="./data/humaneval/human-eval-v2-20210705.jsonl",
        reader_cfg=dict(input_columns=["prompt"], output_column="task_id"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="{prompt}"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(
                type="GenInferencer", max_out_len=512, stop=["\nclass ", "\ndef ", "\n#", "\nif ", "\nprint"]
            ),
        ),
        eval_cfg=dict(evaluator=dict(type="HumanEvalEvaluator", k=[1, 10, 100])),
    )
]
