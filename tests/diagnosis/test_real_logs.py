"""The diagnosis of real logs whose outcome is known, and what the parsers read in each kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoeval.diagnosis.report import diagnose
from tests.diagnosis.log_world import levels, read

HOME = Path(__file__).resolve().parents[2]
LOGS = Path(os.environ.get("AUTOEVAL_DATA", HOME.parent / "shared" / "data")) / "train_logs"
pytestmark = pytest.mark.skipif(not LOGS.is_dir(), reason=f"no logs in {LOGS} (AUTOEVAL_DATA)")

# log, kind, rows, validations, last iteration, levels of overfitting, underfitting, catastrophic forgetting
KNOWN = [
    ("megatron_attn_bench/2256081.out", "megatron", 343, 0, 343, "High Low Low"),
    ("megatron_attn_bench/1861140.out", "megatron", 344, 0, 344, "Low Low Low"),
    ("megatron_attn_bench/3108079.out", "megatron", 416, 0, 416, "Low Low Low"),
    ("megatron_attn_bench/3108434.out", "megatron", 1069, 0, 1069, "Low Low Low"),
    ("bigscience_gpt2/gpt2-meg/meg_gpt2_base_n4_dp1_tp4_pp4-1809579.out", "megatron", 20, 2, 200, "Low Low Low"),
    ("bigscience_gpt2/gpt2-meg-ds-3d/meg_ds_3d_gpt2_perf_n16-ds-on.out", "megatron", 49, 0, 49, "Low Low Low"),
    ("bigscience_gpt2/gpt2-meg-ds-zero/meg_ds_zero_gpt2_perf_n16-1999616.out", "megatron", 4, 0, 4, "Low Low Low"),
    ("hf_trainer/aigoncharov__trainer_state_viz/trainer_state.json", "hf-trainer-state", 30, 186, 12030, "High Low Low"),
    ("hf_trainer/Jaong__Checkpoint-of-CPT/trainer_state.json", "hf-trainer-state", 10, 10, 5490, "High Low Low"),
    ("hf_trainer/Dheena731__tinyLlama-finetune/trainer_state.json", "hf-trainer-state", 186, 14, 2800, "Low Low Low"),
    ("hf_trainer/Mohammed20201991__DataSets/trainer_state.json", "hf-trainer-state", 4, 4, 2000, "Low Low Low"),
    ("hf_trainer/aaghaazkhan__law-llm/trainer_state.json", "hf-trainer-state", 6, 6, 600, "Low Low Low"),
    ("hf_trainer/Ishihara-Masabumi__Llama_SFT/train_log.txt", "hf-trainer-printed", 167, 3, 3, "Medium Low Low"),
    ("hf_trainer/hsc748NLP__NSLLM/trainer_log.jsonl", "llama-factory", 435, 0, 2175, "Low Low Low"),
    ("hf_trainer/syGOAT__Mistral-v0.2-Translator-bf16/trainer_log.jsonl", "llama-factory", 866, 0, 8660, "Medium Low Low"),
    ("olmo_1b/train_1B.log", "olmo", 7640, 0, 7640, "Low Low Low"),
    ("olmo_1b/logs__OLMo-1B-tied-train.log", "olmo", 3000, 0, 3000, "Low Low Low"),
    ("olmo_1b/training.log", "olmo", 1010, 0, 1010, "Low Low Low"),
    ("modded_nanogpt/2024-06-06_AdamW/f66d43d7-e449-4029-8adf-e8537bab49ea.log", "modded-nanogpt", 9536, 76, 9536, "Low Low Low"),
    ("modded_nanogpt/2024-10-10_Muon/eb5659d0-fb6a-49e5-a311-f1f89412f726.txt", "modded-nanogpt", 6200, 51, 6200, "Low Low Low"),
    ("modded_nanogpt/2024-10-13_llmc/main.log", "modded-nanogpt", 19560, 80, 19560, "Low Low Low"),
    ("mlperf_v4.0/NVIDIA__eos_n64_ngc24.04_nemo__gpt3__result_0.txt", "mlperf", 0, 24, 1245708288, "Low Low Low"),
    ("mlperf_v4.0/JuniperNetworks__h100_n1_ngc24.1_pytorch_deepspeed__llama2_70b_lora__result_0.txt", "mlperf", 46, 7, 3840, "Low Low Low"),
    ("deepspeed_chat/step2_dpo_finetuning__training_log_output__opt-350M_globalBatchSize-32.log", "deepspeed-chat", 235, 2, 2350, "Low Low Low"),
    ("deepspeed_chat/step3_rlhf_finetuning__training_log_output__actor_opt-1.3b_critic_opt-350m_globalBatchSize64.log", "deepspeed-chat", None, 0, 470, "Low Low Low"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "rows", "validations", "last", "verdict"), KNOWN)
def test_verdicts(name: str, kind: str, rows: int | None, validations: int, last: int, verdict: str) -> None:
    log = read(LOGS / name)
    found = diagnose(log, "en", now=log.path.stat().st_mtime)
    assert found["log"]["format"] == kind and found["log"]["last"] == last
    assert sum(found["log"]["validations"].values()) == validations
    if rows is not None:
        assert found["log"]["rows"] == rows
    assert " ".join(levels(found)) == verdict


def test_other_risks_of_real_logs() -> None:
    def other(name: str) -> dict[str, str]:
        log = read(LOGS / name)
        found = diagnose(log, "en", now=log.path.stat().st_mtime)["other_risks"]
        return {risk: one["level"] for risk, one in found.items() if one["level"] != "Low"}

    zero = "bigscience_gpt2/gpt2-meg-ds-zero/meg_ds_zero_gpt2_perf_n16-1999616.out"
    assert other(zero) == {"divergence": "High"}  # 12.5 to 39 within four iterations
    assert other("olmo_1b/training.log") == {"stalled_log": "High"}  # ended by a signal at 1,010 of 15,000
    assert other("megatron_attn_bench/3108434.out") == {}


def test_the_script_from_another_directory(tmp_path: Path) -> None:
    import jsonschema

    level = {"enum": ["Low", "Medium", "High"]}
    risks = ("overfitting", "underfitting", "catastrophic_forgetting")
    other = {"type": "object", "required": ["level", "recommendation", "evidence"], "properties": {"level": level}}
    schema = {
        "type": "object",
        "required": ["code", "msg", "data"],
        "additionalProperties": False,
        "properties": {
            "code": {"const": 0},
            "msg": {"const": "Monitoring Report"},
            "data": {
                "required": ["current_risks", "recommendations", "other_risks"],
                "properties": {
                    "current_risks": {
                        "properties": dict.fromkeys(risks, level),
                        "required": list(risks),
                        "additionalProperties": False,
                    },
                    "recommendations": {
                        "properties": {key: {"type": "string", "minLength": 1} for key in risks},
                        "required": list(risks),
                        "additionalProperties": False,
                    },
                    "other_risks": {"type": "object", "additionalProperties": other},
                },
            },
        },
    }
    log = LOGS / "megatron_attn_bench" / "2256081.out"
    command = [HOME / "eval" / "diagnosis_monitoring.sh", log]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHON": sys.executable}, capture_output=True)
    answer = json.loads(done.stdout)
    jsonschema.validate(answer, schema)
    assert done.returncode == 0 and answer["data"]["current_risks"]["overfitting"] == "High"
    assert answer["data"]["recommendations"]["underfitting"] == "-"
    assert "验证" in answer["data"]["recommendations"]["overfitting"]
