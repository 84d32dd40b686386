"""A first run: python run.py config/eval_demo.py --limit 100

Two datasets on a converted checkpoint. Models and datasets of other files are imported inside ``read_base``, as in
OpenCompass; ``infer`` and ``eval`` say how the work is cut and run, and may be left out.
"""

from mmengine.config import read_base

with read_base():
    from .datasets.hellaswag.hellaswag_ppl import hellaswag_datasets
    from .datasets.lambada.lambada_gen import lambada_datasets
    from .models.megatron.converted_checkpoint import models as converted
    from .summarizers.example import summarizer as example

models = [*converted]
datasets = [*hellaswag_datasets, *lambada_datasets]
summarizer = example

infer = dict(
    partitioner=dict(type="SizePartitioner", max_task_size=40000, gen_task_coef=20),
    runner=dict(type="LocalRunner", max_num_workers=1, task=dict(type="OpenICLInferTask")),
)
eval = dict(
    partitioner=dict(type="NaivePartitioner"),
    runner=dict(type="LocalRunner", max_num_workers=2, task=dict(type="OpenICLEvalTask")),
)
