"""BIG-Bench Hard, three-shot with chains of thought, one dataset for each of its 27 tasks."""

_choices = [
    "date_understanding",
    "disambiguation_qa",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
]
_free = [
    "boolean_expressions",
    "causal_judgement",
    "dyck_languages",
    "formal_fallacies",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "sports_understanding",
    "web_of_lies",
    "word_sorting",
]
_infer_cfg = dict(
    prompt_template=dict(
        type="PromptTemplate",
        template=dict(
            round=[
                dict(
                    role="HUMAN",
                    prompt="Follow the given examples and answer the question.\n{hint}\n\nQ: {input}\n"
                    "A: Let's think step by step.",
                )
            ]
        ),
    ),
    retriever=dict(type="ZeroRetriever"),
    inferencer=dict(type="GenInferencer", max_out_len=512, stop=["\n\nQ:"]),
)

bbh_datasets = [
    dict(
        abbr=f"bbh-{name}",
        type="BBHDataset",
        path="./data/BBH",
        name=name,
        reader_cfg=dict(input_columns=["input"], output_column=output),
        infer_cfg=_infer_cfg,
        eval_cfg=dict(evaluator=dict(type="AccEvaluator"), pred_postprocessor=dict(type=postprocessor)),
    )
    for names, output, postprocessor in ((_choices, "letter", "bbh-mcq"), (_free, "target", "bbh-freeform"))
    for name in names
]
