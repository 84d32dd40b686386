"""CommonsenseQA, zero-shot, whole prompts ranked by perplexity."""

commonsenseqa_datasets = [
    dict(
        abbr="commonsense_qa",
        type="commonsenseqaDataset",
        path="./data/commonsenseqa/dev_rand_split.jsonl",
        reader_cfg=dict(input_columns=["question"], output_column="gold", choices_column="choices"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="Question: {question}\nAnswer: {choice}"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
