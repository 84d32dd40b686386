"""The Winograd Schema Challenge, zero-shot, ranked by perplexity.

The data: wsc285.jsonl, an object a line with text, pronoun, options (two) and label (0 or 1), as Hugging Face has it.
"""

winograd_datasets = [
    dict(
        abbr="winograd",
        type="WinogradDataset",
        path="./data/winograd/wsc285.jsonl",
        reader_cfg=dict(input_columns=["prompt", "pronoun", "opt1", "opt2"], output_column="label"),
        infer_cfg=dict(
            prompt_template=dict(
                type="PromptTemplate",
                template={
                    number: "{prompt} Q: In the previous text, what does '{pronoun}' refer to? A: {opt" + opt + "}."
                    for number, opt in enumerate("12")
                },
            ),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="PPLInferencer"),
        ),
        eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
    )
]
