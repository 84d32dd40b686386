"""Datasets: from a file on disk to rows, and how a dataset is configured.

A configuration is a Python file in OpenCompass's (mmengine's) style; every variable whose name ends in ``_datasets`` is
a list of datasets. It is the user's own code and is executed. Types are names (strings); a dotted name counts by its
last part, so OpenCompass's own paths work. A few lines are enough for one's own file: ``autoeval.tasks.short_form``.
The whole form:

    capitals_datasets = [
        dict(
            abbr="capitals",                    # the task's name, everywhere
            type="JsonlDataset",                # JsonlDataset | JsonDataset | CsvDataset | TextDataset | HellaSwagDataset | ...
            path="data/capitals.jsonl",         # one JSON object a line; its keys are the columns
            # path=dict(train="data/shots.jsonl", test="data/capitals.jsonl") gives in-context examples too
            reader_cfg=dict(
                input_columns=["question"],     # must be in every row; what retrievers compare
                output_column="gold",           # the answer
                choices_column="choices",       # optional: a list of choices per row, of any length
                test_range="[0:100]",           # optional, as train_range: slices, a number of rows or a share of them
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
OpenCompass writes it) stands for ``data_dir``. A list of paths: the first that is there.

**Templates** are a string; a meta template, ``dict(begin=[...], round=[dict(role="HUMAN", prompt=...), dict(role="BOT",
prompt=...)], end=...)``, whose roles a model with a ``meta_template`` or a chat template sees as such, and a base model as
lines; or either per label. ``ice_token`` marks where examples go, ``sep_token`` where the answer begins
(``normalizing_str``). A prompt that is too long loses its last examples, then its beginning, and its record says so
("dropped in-context examples", "truncated tokens").

**Choices**: either ``choices_column`` as above (labels are 0, 1, ...; ``{choice}`` is the choice's text; the gold is
the index), or OpenCompass's dictionary with one template per label, ``template={"A": "... {A}", "B": "... {B}"}`` (the
gold is the label). With the dictionary, ``labels_column`` may name a column that lists the labels a row really has. A
gold that is a list: any of them is right.

**Inferencers**: ``PPLInferencer`` ranks whole prompts (OpenCompass's formula; ``acc``). ``LLInferencer`` ranks
continuations given the prompt (``acc``, ``acc_norm`` by bytes, ``acc_norm_token``, and ``bpb``, bits per byte of the right
one): ``template`` is then the context alone and ``inferencer=dict(type="LLInferencer", continuation=" {choice}")`` the
continuation, a string or one per label; without choices it is scored alone (``GreedyEvaluator``). ``CLPInferencer``: the
probability of each one-token choice (``AUCROCEvaluator``). ``GenInferencer`` generates: ``max_out_len``, ``stop``,
``min_out_len``, ``temperature``, ``top_p``, ``top_k``, ``seed``, ``num_return_sequences``; in its template ``{<output_column>}`` is empty in the prompt and
filled in examples. ``SCInferencer`` with ``eval_cfg=dict(sc_size=...)``: the majority of sampled answers.
``ChatInferencer``: answers within a dialogue. ``PPLOnlyInferencer``: what a text costs (``BPBEvaluator``).

**Retrievers**: ``ZeroRetriever``, ``FixKRetriever`` (``fix_id_list``, ``group_column``), ``RandomRetriever``,
``SlidingWindowRetriever``, ``BM25Retriever``; by embeddings ``TopkRetriever``, ``VotekRetriever``, ``DPPRetriever``,
``MDLRetriever``. They need ``ice_template=dict(type="PromptTemplate", template=..., ice_token="</E>")`` or an ``ice_token``
in the prompt's own template.

**Evaluators**: ``autoeval.openicl.evaluators``; **post-processors** (``pred_postprocessor``, ``dataset_postprocessor``):
``autoeval.openicl.postprocessors``. ``group_column`` in ``eval_cfg`` adds the mean over groups, with its own standard error.

Rows that lack a column, golds that are no choice and files that are not there are errors naming file and row.
"""
