"""CommonsenseQA, zero-shot, the letter of the answer generated."""

commonsenseqa_gen_datasets = [
    dict(
        abbr="commonsense_qa_gen",
        type="commonsenseqaDataset",
        path="./data/commonsenseqa/dev_rand_split.jsonl",
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
