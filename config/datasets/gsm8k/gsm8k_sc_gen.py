"""GSM8K, four-shot, self-consistency: the majority of eight sampled answers."""

gsm8k_sc_datasets = [
    dict(
        abbr="gsm8k_sc",
        type="GSM8KDataset",
        path="./data/gsm8k",
        reader_cfg=dict(input_columns=["question"], output_column="answer"),
        infer_cfg=dict(
            ice_template=dict(type="PromptTemplate", template="Question: {question}\nAnswer: {answer}\n"),
            prompt_template=dict(
                type="PromptTemplate", template="</E>Question: {question}\nAnswer:{answer}", ice_token="</E>"
            ),
            retriever=dict(type="FixKRetriever", fix_id_list=[0, 1, 2, 3]),
            inferencer=dict(type="SCInferencer", max_out_len=256, stop=["Question:"], temperature=0.7, sc_size=8),
        ),
        eval_cfg=dict(
            evaluator=dict(type="MATHEvaluator"),
            pred_postprocessor=dict(type="gsm8k"),
            dataset_postprocessor=dict(type="gsm8k_dataset"),
            sc_size=8,
        ),
    )
]
