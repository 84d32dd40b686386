"""CommonsenseQA, zero-shot, choices ranked by their log-likelihood (acc) and per byte (acc_norm)."""

commonsenseqa_ll_datasets = [
    dict(
        abbr="commonsense_qa_ll",
        type="commonsenseqaDataset",
        path="./data/commonsenseqa/dev_rand_split.jsonl",
        reader_cfg=dict(input_columns=["question"], output_column="gold", choices_column="choices"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template="Question: {question}\nAnswer:"),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="LLInferencer", continuation=" {choice}"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
