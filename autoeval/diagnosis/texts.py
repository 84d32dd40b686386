"""The sentences of a diagnosis in Chinese and English: what each rule says of its evidence, and what to do."""

from __future__ import annotations

import math
from typing import Literal

from autoeval.diagnosis.finding import Finding

Language = Literal["zh", "en"]

# In each sentence {first}, {last} are iterations, the others the finding's values. "%" values are percentages.
_EVIDENCE: dict[str, tuple[str, str]] = {
    "validation_upturn": (
        "验证集 {set} 的损失在 {first} 处到达最低 {minimum}，到 {last} 上升 {rise}（{rise_percent}%，噪声标准差 {noise}，其后 {points_after} 次验证），同期训练损失下降 {train_fell}，差距扩大 {gap_growth_percent}%",
        "the loss on {set} was lowest, {minimum}, at {first} and rose by {rise} ({rise_percent} %; noise {noise}; {points_after} validations since) until {last}, while the training loss fell by {train_fell}: the gap grew by {gap_growth_percent} %",
    ),
    "gap_growth": (
        "从 {first} 到 {last}，训练损失下降 {train_fell}，验证损失只下降 {gained}，差距扩大 {gap_growth_percent}%",
        "from {first} to {last} the training loss fell by {train_fell}, the validation loss only by {gained}: the gap grew by {gap_growth_percent} %",
    ),
    "memorised": (
        "从零训练（起始损失 {start}）的训练损失自 {first} 起低于 {limit}，在 {last} 为 {loss}：自然文本达不到这样低的损失，数据正在被背诵；日志中没有验证损失",
        "trained from scratch (first loss {start}), the training loss is below {limit} since {first} and {loss} at {last}: no text is that predictable, the data is being memorised; the log has no validation losses",
    ),
    "epoch_stairs": (
        "训练损失在 {epochs} 个轮次边界处骤降，最大一次在第 {border} 轮结束时下降 {fall_percent}%（自 {first}）：见过的数据损失更低；日志中没有验证损失",
        "the training loss drops at {epochs} borders of epochs, most after epoch {border}, by {fall_percent} % (since {first}): it is lower on data seen before; the log has no validation losses",
    ),
    "above_model_size": (
        "损失停在 {loss}（{first} 到 {last}，迭代数翻倍只下降 {fall_percent}%），比 {parameters} 个参数、{tokens} 个词元按缩放定律应有的 {expected} 高 {excess}",
        "the loss stands at {loss} ({first} to {last}; a doubling of the iterations takes {fall_percent} % off), {excess} above the {expected} that the scaling law gives {parameters} parameters and {tokens} tokens",
    ),
    "high_plateau": (
        "从零训练的损失停在 {loss}（{first} 到 {last}，迭代数翻倍只下降 {fall_percent}%），高于 {limit}",
        "trained from scratch, the loss stands at {loss} ({first} to {last}; a doubling of the iterations takes {fall_percent} % off), above {limit}",
    ),
    "above_own_fit": (
        "损失停在 {loss}（{first} 到 {last}），比由前半段曲线拟合的幂律（指数 {exponent}）外推的 {expected} 高 {excess_percent}%",
        "the loss stands at {loss} ({first} to {last}), {excess_percent} % above the {expected} that a power law fitted to the first half (exponent {exponent}) leads to",
    ),
    "learnt_nothing": (
        "微调损失从 {start} 到 {loss}，只下降 {learnt_percent}%（到 {last}）",
        "fine-tuning took the loss from {start} to {loss}, {learnt_percent} % in all (until {last})",
    ),
    "jumped_back": (
        "训练损失在 {first} 处从 {before} 跳到 {after}（+{rise_percent}%），相当于退回 {as_at} 的水平（{lost_percent}% 的训练进度），到 {last} 仍未恢复",
        "at {first} the training loss jumped from {before} to {after} (+{rise_percent} %), as high as at {as_at} ({lost_percent} % of the run undone), and has not come back by {last}",
    ),
    "jumped_back_recovered": (
        "训练损失在 {first} 处从 {before} 跳到 {after}（+{rise_percent}%），相当于退回 {as_at} 的水平，到 {last} 才恢复",
        "at {first} the training loss jumped from {before} to {after} (+{rise_percent} %), as high as at {as_at}, and was back only at {last}",
    ),
    "older_domain": (
        "验证集 {set} 的损失从 {first} 处的最低 {minimum} 上升 {rise_percent}%（到 {last}，噪声标准差 {noise}），而其他 {others} 个验证集没有上升",
        "the loss on {set} rose by {rise_percent} % from its lowest, {minimum} at {first}, until {last} (noise {noise}), while {others} other sets did not rise",
    ),
    "item_flips": (
        "任务 {task}：与检查点 {first} 相比，检查点 {last} 有 {lost} 题由对变错、{gained} 题由错变对（共 {items} 题，净损失 {net_percent}%，校正后 p = {p_value}）",
        "task {task}: of {items} items, checkpoint {last} lost {lost} that checkpoint {first} had right and gained {gained} (net {net_percent} %, corrected p = {p_value})",
    ),
    "loss_spike": (
        "{first} 到 {last} 之间训练损失有 {count} 次尖峰（每千行 {per_thousand} 次），最强一次在 {worst_at}：{baseline} → {peak}（稳健 z = {z}）",
        "{count} spikes of the training loss between {first} and {last} ({per_thousand} in 1000 rows), the strongest at {worst_at}: {baseline} to {peak} (robust z = {z})",
    ),
    "grad_norm_spike": (
        "{first} 到 {last} 之间梯度范数有 {count} 次尖峰（每千行 {per_thousand} 次），最强一次在 {worst_at}：{baseline} → {peak}（稳健 z = {z}）",
        "{count} spikes of the gradient norm between {first} and {last} ({per_thousand} in 1000 rows), the strongest at {worst_at}: {baseline} to {peak} (robust z = {z})",
    ),
    "nan_loss": (
        "{first} 到 {last} 之间有 {count} 次损失为 NaN 或无穷（{percent}%）",
        "{count} losses between {first} and {last} are NaN or infinite ({percent} %)",
    ),
    "skipped_iterations": (
        "{first} 到 {last} 之间跳过 {count} 次迭代（{percent}%）",
        "{count} iterations between {first} and {last} were skipped ({percent} %)",
    ),
    "diverged": (
        "训练损失从 {first} 处的最低 {lowest} 升到 {loss}（+{rise_percent}%，到 {last}）",
        "the training loss rose from its lowest, {lowest} at {first}, to {loss} (+{rise_percent} %, until {last})",
    ),
    "loss_scale_fell": (
        "损失缩放系数从 {first} 处的 {highest} 降到 {scale}（到 {last}）：梯度持续溢出",
        "the loss scale fell from {highest} at {first} to {scale} (until {last}): gradients keep overflowing",
    ),
    "learning_rate_jump": (
        "学习率在衰减开始后 {count} 次突然上升，第一次在 {first}：{before} → {after}",
        "the learning rate jumped up {count} times after its decay had begun, first at {first}: {before} to {after}",
    ),
    "learning_rate_zero": (
        "从 {first} 到 {last} 学习率没有大于 0 过",
        "the learning rate was never above 0 from {first} to {last}",
    ),
    "learning_rate_negative": (
        "自 {first} 起学习率为负（{rate}）",
        "the learning rate is negative since {first} ({rate})",
    ),
    "learning_rate_ended": (
        "学习率自 {first} 起为 0，而训练要到 {total} 才结束",
        "the learning rate is 0 since {first}, but training goes on until {total}",
    ),
    "slower": (
        "吞吐量从 {first} 附近的 {best} 降到 {now}（到 {last}，慢了 {factor} 倍）",
        "throughput fell from {best} around {first} to {now} (until {last}; a factor of {factor})",
    ),
    "broken_off": (
        "训练在 {last} 处以 Python 错误中断（应到 {total}）",
        "training broke off at {last} with a Python traceback (due to end at {total})",
    ),
    "silent": (
        "日志停在 {last}（应到 {total}），已有 {minutes} 分钟没有写入",
        "the log stands at {last} of {total} and has not been written to for {minutes} minutes",
    ),
    "resumed": (
        "训练 {count} 次从更早的检查点恢复，共重做 {lost}，最多一次从 {last} 回到 {first}",
        "training was resumed further back {count} times, {lost} in all to do again, at most from {last} back to {first}",
    ),
}

_RECOMMENDATIONS: dict[str, tuple[str, str]] = {
    "overfitting": (
        "在验证损失最低处选用检查点并考虑提前停止；增加或更换训练数据、去重、减少重复轮次；加大正则化（权重衰减、dropout）或降低学习率；没有验证集时请先设置验证集",
        "take the checkpoint with the lowest validation loss and consider stopping; add, deduplicate or change training data and repeat it less; regularise more (weight decay, dropout) or lower the learning rate; without a validation set, set one up first",
    ),
    "underfitting": (
        "检查学习率与预热（是否过低、过早衰减到 0）、数据与分词是否匹配；训练更久，或增大模型、批量；在小样本上确认模型能把损失降下来",
        "check learning rate and warm-up (too low, at 0 too early) and that data and tokenizer fit together; train longer, or with a larger model or batch; make sure that the model can learn a small sample",
    ),
    "catastrophic_forgetting": (
        "从损失跳升前的检查点恢复；在训练数据中回放旧领域数据；降低学习率，或用 LoRA 等只更新少量参数的方法；为旧领域设独立验证集并逐题跟踪",
        "go back to the checkpoint before the rise; replay data of the older domains; lower the learning rate or update fewer parameters (LoRA); keep a validation set for each older domain and follow it item by item",
    ),
    "loss_spikes": (
        "降低学习率或加强梯度裁剪；从尖峰前的检查点恢复并跳过该段数据；检查该段数据",
        "lower the learning rate or clip gradients harder; resume before the spike and skip those batches; look at those batches",
    ),
    "grad_norm_spikes": (
        "加强梯度裁剪，检查对应的数据批次，考虑降低学习率或 Adam 的 beta2",
        "clip gradients harder, look at the batches, consider a lower learning rate or Adam beta2",
    ),
    "nan_or_skipped_iterations": (
        "检查数据中的异常样本与混合精度设置；fp16 可改用 bf16；从正常的检查点恢复",
        "check the data for broken samples and the mixed-precision settings; use bf16 instead of fp16; resume from a checkpoint that is still sound",
    ),
    "divergence": (
        "停止训练，从损失最低处附近的检查点恢复，并降低学习率或延长预热",
        "stop, resume from a checkpoint near the lowest loss, with a lower learning rate or a longer warm-up",
    ),
    "loss_scale_collapse": (
        "改用 bf16，或降低学习率、检查溢出的层",
        "use bf16, or lower the learning rate and find the layers that overflow",
    ),
    "learning_rate_anomalies": (
        "核对学习率计划、恢复训练时的 --override-opt_param-scheduler 等参数与总步数",
        "check the schedule, its options when resuming (--override-opt_param-scheduler) and the number of iterations",
    ),
    "throughput_drop": (
        "检查慢节点、数据读取、网络与检查点写入",
        "look for a slow node, data loading, the network, checkpoint writing",
    ),
    "stalled_log": (
        "查看作业是否还在运行，检查通信挂起与节点故障；从最近的检查点恢复",
        "see whether the job still runs; look for hung communication and failed nodes; resume from the last checkpoint",
    ),
    "resumed_from_earlier": (
        "更频繁地保存检查点，并查明中断的原因",
        "save checkpoints more often, and find out why training was interrupted",
    ),
}


def evidence(finding: Finding, axis: str, language: Language) -> str:
    """The sentence of ``finding``'s rule with its numbers; iterations in the units of ``axis``."""
    shown = {name: _shown(value) for name, value in finding.values.items()}
    sentence = _EVIDENCE[finding.rule][language == "en"]
    return sentence.format(
        **shown, first=_place(finding.first, axis, language), last=_place(finding.last, axis, language)
    )


def recommendation(risk: str, language: Language) -> str:
    return _RECOMMENDATIONS[risk][language == "en"]


def _place(iteration: float, axis: str, language: Language) -> str:
    unit = {"zh": {"iteration": "迭代", "epoch": "轮次", "samples": "样本"}, "en": {}}[language].get(axis, axis)
    return f"{unit} {iteration:.10g}"


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "?"
    return (
        f"{value:.0f}"
        if value == int(value) and abs(value) < 1e15
        else f"{value:.4g}"
        if math.isfinite(value)
        else str(value)
    )
