"""The answers to test.jsonl beside this file, generated: F1 over Chinese characters and words of other scripts."""

answers_gen_datasets = [
    dict(
        abbr="answers",
        type="MessagesDataset",
        path="test.jsonl",
        reader_cfg=dict(output_column="reference"),
        infer_cfg=dict(
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="ChatInferencer", max_out_len=48, chat_template=True),
        ),
        eval_cfg=dict(
            evaluator=dict(type="F1Evaluator", tokenize="zh"),
            pred_postprocessor=dict(type="strip"),
            dataset_postprocessor=dict(type="strip"),
        ),
    )
]
