"""Datasets: from a file on disk to rows, and how a dataset is configured.

A configuration is a Python file in OpenCompass's (mmengine's) style; every variable whose name ends in ``_datasets`` is
a list of datasets. It is the user's own code and is executed. Types are names (strings); a dotted name counts by its
last part, so OpenCompass's own paths work. A multiple-choice task on the user's own file:

    capitals_datasets = [
        dict(
            abbr="capitals",                    # the task's name, everywhere
            type="JsonlDataset",                # JsonlDataset | JsonDataset | CsvDataset | HellaSwagDataset | ...
            path="data/capitals.jsonl",         # one JSON object a line; its keys are the columns
            # path=dict(train="data/shots.jsonl", test="data/capitals.jsonl") gives in-context examples too
            reader_cfg=dict(
                input_columns=["question"],     # must be in every row
                output_column="gold",           # the answer
                choices_column="choices",       # optional: a list of choices per row, of any length
            ),
            infer_cfg=dict(
                prompt_template=dict(type="PromptTemplate", template="Question: {question}\\nAnswer: {choice}"),
                retriever=dict(type="ZeroRetriever"),
                inferencer=dict(type="PPLInferencer"),
            ),
            eval_cfg=dict(evaluator=dict(type="AccEvaluator")),
        )
    ]

**Paths** are looked up beside the configuration file first, then under ``data_dir``; a leading ``./data/`` (as
OpenCompass writes it) stands for ``data_dir``.

**Choices**: either ``choices_column`` as above (labels are 0, 1, ...; ``{choice}`` is the choice's text; the gold is
the index), or OpenCompass's dictionary with one template per label, ``template={"A": "... {A}", "B": "... {B}"}`` (the
gold is the label). With the dictionary, ``labels_column`` may name a column that lists the labels a row really has.

**Inferencers**: ``PPLInferencer`` ranks whole prompts (OpenCompass's formula; metric ``acc``). ``LLInferencer`` ranks
continuations given the prompt (metrics ``acc`` and ``acc_norm``): ``template`` is then the context alone and
``inferencer=dict(type="LLInferencer", continuation=" {choice}")`` the continuation, a string or one per label.
``GenInferencer`` generates: ``inferencer=dict(type="GenInferencer", max_out_len=16, stop=["\\n"])``; in its template
``{<output_column>}`` is empty in the prompt and filled in examples. Evaluators for it: ``EMEvaluator``
(``exact_match``), ``AccEvaluator`` (``acc``), ``F1Evaluator``, ``SquadEvaluator``, ``RougeEvaluator``,
``BleuEvaluator``; with ``eval_cfg=dict(evaluator=..., pred_postprocessor=dict(type="first-capital"))`` the text is cut
first. A gold may be a list of accepted answers.

**In-context examples**: ``ice_template=dict(type="PromptTemplate", template=..., ice_token="</E>")`` with
``retriever=dict(type="FixKRetriever", fix_id_list=[0, 1, 2])``; the prompt has ``</E>`` where they go.

Rows that lack a column, golds that are no choice and files that are not there are errors naming file and row.
"""
