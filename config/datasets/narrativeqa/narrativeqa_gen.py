"""NarrativeQA, zero-shot on the summaries: token F1 and exact match (SQuAD) against two reference answers."""

_options = dict(
    type="NarrativeQADataset",
    # The repository as it is, or HELM's copy of it beside this data.
    path=["./data/narrativeqa", "./data/../helm_scenarios/narrativeqa/data/narrativeqa-master"],
    reader_cfg=dict(input_columns=["evidence", "question"], output_column="answers"),
    infer_cfg=dict(
        prompt_template=dict(
            type="PromptTemplate",
            template=dict(
                round=[
                    dict(role="HUMAN", prompt="{evidence}\nAnswer these questions:\nQ: {question}"),
                    dict(role="BOT", prompt="A:"),
                ]
            ),
        ),
        retriever=dict(type="ZeroRetriever"),
        inferencer=dict(type="GenInferencer", max_out_len=50, stop=["\n"]),
    ),
)

narrativeqa_datasets = [
    dict(
        abbr="NarrativeQA",
        eval_cfg=dict(evaluator=dict(type="SquadEvaluator"), pred_postprocessor=dict(type="first-line")),
        **_options,
    )
]
