"""Command compliance: write a question about a passage as the instruction demands (Natural Instructions, subtask 001).

The file is BIG-bench's ``task.json`` of that subtask, or the collection's own ``subtask001_….json``; two of its positive
examples are shown where it has any. ``bleu`` of sacrebleu (13a), each accepted question a reference.
"""

command_compliance_datasets = [
    dict(
        abbr="command_compliance",
        type="NaturalInstructionsDataset",
        path=[
            "./data/natural_instructions/subtask001_quoref_question_generation.json",
            "./data/natural_instructions/subtask001_quoref_question_generation/task.json",
            "./data/bigbench/natural_instructions/subtask001_quoref_question_generation/task.json",
        ],
        reader_cfg=dict(input_columns=["instruction", "input"], output_column="outputs"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template=dict(
                    round=[
                        dict(role="HUMAN", prompt="{instruction}\n\n{demonstrations}Input: {input}\nOutput:"),
                    ]
                ),
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=48, stop=["\n"]),
        ),
        eval_cfg=dict(evaluator=dict(type="BleuEvaluator"), pred_postprocessor=dict(type="first-line")),
    )
]
