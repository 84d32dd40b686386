"""AGIEval, zero-shot, generated: the letter (or letters, or the answer itself) of each of its exams."""

_english = ["aqua-rat", "logiqa-en", "lsat-ar", "lsat-lr", "lsat-rc", "sat-en", "sat-en-without-passage", "sat-math"]
_chinese = [
    "gaokao-biology",
    "gaokao-chemistry",
    "gaokao-chinese",
    "gaokao-english",
    "gaokao-geography",
    "gaokao-history",
    "gaokao-mathqa",
    "logiqa-zh",
]
_several = ["gaokao-physics", "jec-qa-ca", "jec-qa-kd"]
_cloze = ["gaokao-mathcloze", "math"]

_ask_english = "Q: {problem}\nAnswer Choices:\n{options}\nA: Among these, the answer is"
_ask_chinese = "问题：{problem}\n选项：\n{options}\n答案："
_ask_cloze = "Q: {problem}\nA: The answer is"

agieval_datasets = [
    dict(
        abbr=f"agieval-{name}",
        type="AGIEvalDataset",
        path="./data/AGIEval/data/v1",
        name=name,
        reader_cfg=dict(input_columns=["problem", "options"], output_column="label"),
        infer_cfg=dict(
            prompt_template=dict(type="PromptTemplate", template=dict(round=[dict(role="HUMAN", prompt=prompt)])),
            retriever=dict(type="ZeroRetriever"),
            inferencer=dict(type="GenInferencer", max_out_len=length, stop=["\n"]),
        ),
        eval_cfg=dict(evaluator=dict(type=evaluator), pred_postprocessor=postprocessor),
    )
    for names, prompt, length, evaluator, postprocessor in (
        (_english, _ask_english, 16, "AccEvaluator", dict(type="first-option", options="ABCDE")),
        (_chinese, _ask_chinese, 16, "AccEvaluator", dict(type="first-option", options="ABCD")),
        (_several, _ask_chinese, 16, "AccEvaluator", dict(type="multiple-select")),
        (_cloze, _ask_cloze, 64, "MATHEvaluator", dict(type="first-line")),
    )
    for name in names
]
