"""What the language's corpus tells about its people: four values of the same kind, ranked by perplexity."""

facts_datasets = [
    dict(
        abbr="facts",
        type="JsonlDataset",
        path="facts_ppl.jsonl",  # under icl.data_dir of evaluator.yaml
        reader_cfg=dict(input_columns=["prompt", "A", "B", "C", "D"], output_column="answer"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template={letter: "{prompt} {" + letter + "}" for letter in "ABCD"},
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
