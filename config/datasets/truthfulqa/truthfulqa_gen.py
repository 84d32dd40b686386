"""TruthfulQA, zero-shot, generated: nearer to a correct answer than to any incorrect one, by BLEU and ROUGE."""

truthfulqa_gen_datasets = [
    dict(
        abbr="truthfulqa_gen",
        type="TruthfulQADataset",
        path="./data/truthfulqa/TruthfulQA.csv",
        reader_cfg=dict(input_columns=["question"], output_column="best_answer"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate", template=dict(round=[dict(role="HUMAN", prompt="Q: {question}\nA:")])
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=50, stop=["\n", "Q:"]),
        ),
        eval_cfg=dict(evaluator=dict(type="TruthfulQAEvaluator"), pred_postprocessor=dict(type="first-line")),
    )
]
