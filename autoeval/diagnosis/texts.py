"""The sentences of a diagnosis in Chinese and English: what each rule says of its evidence, and what to do."""

from __future__ import annotations

import math
import re
from typing import Literal

from autoeval.diagnosis.finding import Finding

Language = Literal["zh", "en"]
_BETWEEN_CHARACTERS = re.compile(r"(?<=[\u4e00-\u9fff]) (?=[\u4e00-\u9fff])")  # Chinese has no spaces there

# In each sentence {first}, {last} are iterations, the others the finding's values. "%" values are percentages.
_EVIDENCE: dict[str, tuple[str, str]] = {
    "validation_upturn": (
        "验证集 {set} 的损失在 {first} 降到最低值 {minimum}，到 {last} 回升了 {rise}（{rise_percent}%；噪声标准差 {noise}，最低点之后验证了 {points_after} 次），同期训练损失下降 {train_fell}，两者的差距扩大了 {gap_growth_percent}%",
        "the loss on {set} was lowest, {minimum}, at {first} and rose by {rise} ({rise_percent} %; noise {noise}; {points_after} validations since) until {last}, while the training loss fell by {train_fell}: the gap grew by {gap_growth_percent} %",
    ),
    "gap_growth": (
        "从 {first} 到 {last}，训练损失下降 {train_fell}，而验证损失只下降 {gained}，两者的差距扩大了 {gap_growth_percent}%",
        "from {first} to {last} the training loss fell by {train_fell}, the validation loss only by {gained}: the gap grew by {gap_growth_percent} %",
    ),
    "memorised": (
        "模型从零开始训练（初始损失 {start}），训练损失自 {first} 起低于 {limit}，到 {last} 已降至 {loss}：自然文本不可能达到这么低的损失，说明模型在死记训练数据；日志中没有验证损失可供对照",
        "trained from scratch (first loss {start}), the training loss is below {limit} since {first} and {loss} at {last}: no text is that predictable, the data is being memorised; the log has no validation losses",
    ),
    "epoch_stairs": (
        "训练损失在 {epochs} 个轮次交界处骤降，降幅最大的一次在第 {border} 轮结束时，达 {fall_percent}%（从 {first} 开始）：模型在见过的数据上损失更低；日志中没有验证损失可供对照",
        "the training loss drops at {epochs} borders of epochs, most after epoch {border}, by {fall_percent} % (since {first}): it is lower on data seen before; the log has no validation losses",
    ),
    "above_model_size": (
        "损失停滞在 {loss}（{first} 到 {last}，迭代数翻倍仅下降 {fall_percent}%）；按缩放定律，{parameters} 个参数、{tokens} 个 token 应能达到 {expected}，实际高出 {excess}",
        "the loss stands at {loss} ({first} to {last}; a doubling of the iterations takes {fall_percent} % off), {excess} above the {expected} that the scaling law gives {parameters} parameters and {tokens} tokens",
    ),
    "high_plateau": (
        "模型从零开始训练，损失停滞在 {loss}（{first} 到 {last}，迭代数翻倍仅下降 {fall_percent}%），高于 {limit}",
        "trained from scratch, the loss stands at {loss} ({first} to {last}; a doubling of the iterations takes {fall_percent} % off), above {limit}",
    ),
    "above_own_fit": (
        "损失停滞在 {loss}（{first} 到 {last}），比前半段曲线的幂律拟合（指数 {exponent}）外推得到的 {expected} 高 {excess_percent}%",
        "the loss stands at {loss} ({first} to {last}), {excess_percent} % above the {expected} that a power law fitted to the first half (exponent {exponent}) leads to",
    ),
    "learnt_nothing": (
        "微调至 {last}，损失从 {start} 变为 {loss}，仅下降 {learnt_percent}%",
        "fine-tuning took the loss from {start} to {loss}, {learnt_percent} % in all (until {last})",
    ),
    "jumped_back": (
        "训练损失在 {first} 从 {before} 跳升到 {after}（+{rise_percent}%），相当于退回到 {as_at} 时的水平（损失了 {lost_percent}% 的训练进度），到 {last} 仍未恢复",
        "at {first} the training loss jumped from {before} to {after} (+{rise_percent} %), as high as at {as_at} ({lost_percent} % of the run undone), and has not come back by {last}",
    ),
    "jumped_back_recovered": (
        "训练损失在 {first} 从 {before} 跳升到 {after}（+{rise_percent}%），相当于退回到 {as_at} 时的水平，直到 {last} 才恢复",
        "at {first} the training loss jumped from {before} to {after} (+{rise_percent} %), as high as at {as_at}, and was back only at {last}",
    ),
    "older_domain": (
        "验证集 {set} 的损失从 {first} 的最低值 {minimum} 起，到 {last} 上升了 {rise_percent}%（噪声标准差 {noise}），而其他 {others} 个验证集没有上升",
        "the loss on {set} rose by {rise_percent} % from its lowest, {minimum} at {first}, until {last} (noise {noise}), while {others} other sets did not rise",
    ),
    "item_flips": (
        "任务 {task}：与 {first} 的检查点相比，{last} 的检查点有 {lost} 题由对变错、{gained} 题由错变对（共 {items} 题，净减少 {net_percent}%，校正后 p = {p_value}）",
        "task {task}: of {items} items, the checkpoint of {last} lost {lost} that the one of {first} had right and gained {gained} (net {net_percent} %, corrected p = {p_value})",
    ),
    "loss_spike": (
        "{first} 到 {last} 之间训练损失出现 {count} 次尖峰（每千行 {per_thousand} 次），最严重的一次在 {worst_at}：{baseline} → {peak}（稳健 z 值 {z}）",
        "{count} spikes of the training loss between {first} and {last} ({per_thousand} in 1000 rows), the strongest at {worst_at}: {baseline} to {peak} (robust z = {z})",
    ),
    "grad_norm_spike": (
        "{first} 到 {last} 之间梯度范数出现 {count} 次尖峰（每千行 {per_thousand} 次），最严重的一次在 {worst_at}：{baseline} → {peak}（稳健 z 值 {z}）",
        "{count} spikes of the gradient norm between {first} and {last} ({per_thousand} in 1000 rows), the strongest at {worst_at}: {baseline} to {peak} (robust z = {z})",
    ),
    "nan_loss": (
        "{first} 到 {last} 之间有 {count} 次损失为 NaN 或无穷大（占 {percent}%）",
        "{count} losses between {first} and {last} are NaN or infinite ({percent} %)",
    ),
    "skipped_iterations": (
        "{first} 到 {last} 之间跳过了 {count} 次迭代（占 {percent}%）",
        "{count} iterations between {first} and {last} were skipped ({percent} %)",
    ),
    "diverged": (
        "训练损失从 {first} 的最低值 {lowest} 升到 {last} 的 {loss}（+{rise_percent}%）",
        "the training loss rose from its lowest, {lowest} at {first}, to {loss} (+{rise_percent} %, until {last})",
    ),
    "loss_scale_fell": (
        "损失缩放系数从 {first} 的 {highest} 降到 {last} 的 {scale}：梯度持续溢出",
        "the loss scale fell from {highest} at {first} to {scale} (until {last}): gradients keep overflowing",
    ),
    "learning_rate_jump": (
        "学习率在开始衰减后又突然上升 {count} 次，第一次在 {first}：{before} → {after}",
        "the learning rate jumped up {count} times after its decay had begun, first at {first}: {before} to {after}",
    ),
    "learning_rate_zero": (
        "从 {first} 到 {last}，学习率始终没有大于 0",
        "the learning rate was never above 0 from {first} to {last}",
    ),
    "learning_rate_negative": (
        "自 {first} 起学习率为负（{rate}）",
        "the learning rate is negative since {first} ({rate})",
    ),
    "learning_rate_ended": (
        "学习率自 {first} 起为 0，而训练计划到 {total} 才结束",
        "the learning rate is 0 since {first}, but training goes on until {total}",
    ),
    "slower": (
        "吞吐量从 {first} 附近的 {best} 降到 {last} 的 {now}（前者是后者的 {factor} 倍）",
        "throughput fell from {best} around {first} to {now} (until {last}; a factor of {factor})",
    ),
    "broken_off": (
        "训练在 {last} 因 Python 报错（Traceback）中断（计划到 {total}）",
        "training broke off at {last} with a Python traceback (due to end at {total})",
    ),
    "silent": (
        "日志停在 {last}（计划到 {total}），已有 {minutes} 分钟没有更新",
        "the log stands at {last} of {total} and has not been written to for {minutes} minutes",
    ),
    "resumed": (
        "训练有 {count} 次退回到更早的检查点重新开始，合计需重做 {lost}，退得最多的一次从 {last} 回到 {first}",
        "training was resumed further back {count} times, {lost} in all to do again, at most from {last} back to {first}",
    ),
}

_RECOMMENDATIONS: dict[str, tuple[str, str]] = {
    "overfitting": (
        "选用验证损失最低处的检查点，并考虑提前停止训练；增加或更换训练数据，做好去重，减少重复的轮次；加强正则化（权重衰减、dropout）或降低学习率；如果没有验证集，请先设置",
        "take the checkpoint with the lowest validation loss and consider stopping; add, deduplicate or change training data and repeat it less; regularise more (weight decay, dropout) or lower the learning rate; without a validation set, set one up first",
    ),
    "underfitting": (
        "检查学习率和预热设置（是否过低、是否过早衰减到 0），以及数据与分词器是否匹配；延长训练，或增大模型、批大小；先用少量样本确认模型能把损失降下来",
        "check learning rate and warm-up (too low, at 0 too early) and that data and tokenizer fit together; train longer, or with a larger model or batch; make sure that the model can learn a small sample",
    ),
    "catastrophic_forgetting": (
        "从损失跳升之前的检查点恢复；在训练数据中混入旧领域的数据（回放）；降低学习率，或改用 LoRA 等只更新少量参数的方法；为每个旧领域单独设置验证集，并逐题跟踪",
        "go back to the checkpoint before the rise; replay data of the older domains; lower the learning rate or update fewer parameters (LoRA); keep a validation set for each older domain and follow it item by item",
    ),
    "loss_spikes": (
        "降低学习率或加强梯度裁剪；从尖峰之前的检查点恢复，跳过并检查对应的数据批次",
        "lower the learning rate or clip gradients harder; resume before the spike and skip those batches; look at those batches",
    ),
    "grad_norm_spikes": (
        "加强梯度裁剪，检查对应的数据批次，并考虑降低学习率或 Adam 的 beta2",
        "clip gradients harder, look at the batches, consider a lower learning rate or Adam beta2",
    ),
    "nan_or_skipped_iterations": (
        "检查数据中的异常样本和混合精度设置；如使用 fp16，可改用 bf16；从仍然正常的检查点恢复",
        "check the data for broken samples and the mixed-precision settings; use bf16 instead of fp16; resume from a checkpoint that is still sound",
    ),
    "divergence": (
        "停止训练，从损失最低处附近的检查点恢复，并降低学习率或延长预热阶段",
        "stop, resume from a checkpoint near the lowest loss, with a lower learning rate or a longer warm-up",
    ),
    "loss_scale_collapse": (
        "改用 bf16，或降低学习率，并排查发生溢出的层",
        "use bf16, or lower the learning rate and find the layers that overflow",
    ),
    "learning_rate_anomalies": (
        "核对学习率调度、总步数，以及恢复训练时的 --override-opt_param-scheduler 等参数",
        "check the schedule, its options when resuming (--override-opt_param-scheduler) and the number of iterations",
    ),
    "throughput_drop": (
        "排查慢节点、数据读取、网络和检查点写入",
        "look for a slow node, data loading, the network, checkpoint writing",
    ),
    "stalled_log": (
        "确认作业是否仍在运行，排查通信卡死和节点故障；从最近的检查点恢复",
        "see whether the job still runs; look for hung communication and failed nodes; resume from the last checkpoint",
    ),
    "resumed_from_earlier": (
        "更频繁地保存检查点，并查明中断的原因",
        "save checkpoints more often, and find out why training was interrupted",
    ),
}


def evidence(finding: Finding, axis: str, language: Language) -> str:
    """The sentence of ``finding``'s rule with its numbers; iterations in the units of ``axis``."""
    axis = "iteration" if finding.rule == "item_flips" else axis  # the ledger's, whatever the log counts
    shown = {
        name: _place(float(value), axis, language) if name.endswith("_at") else _shown(value)
        for name, value in finding.values.items()
    }
    told = _EVIDENCE[finding.rule][language == "en"].format(
        **shown, first=_place(finding.first, axis, language), last=_place(finding.last, axis, language)
    )
    return _BETWEEN_CHARACTERS.sub("", told)


def recommendation(risk: str, language: Language) -> str:
    return _RECOMMENDATIONS[risk][language == "en"]


def _place(iteration: float, axis: str, language: Language) -> str:
    if language == "en":
        return f"{axis} {iteration:.10g}"
    unit = {"iteration": "次迭代", "epoch": "轮", "samples": "个样本"}[axis]
    return f"第 {iteration:.10g} {unit}"


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
