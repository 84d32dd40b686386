"""A diagnosis as plain values: levels, recommendations, evidence; what ``eval/diagnosis_monitoring.py`` prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from autoeval.diagnosis.finding import Finding, highest
from autoeval.diagnosis.forgetting import forgetting
from autoeval.diagnosis.other_risks import other_risks
from autoeval.diagnosis.overfitting import overfitting
from autoeval.diagnosis.texts import Language, evidence, recommendation
from autoeval.diagnosis.training_log import TrainingLog
from autoeval.diagnosis.underfitting import underfitting

MESSAGE = "Monitoring Report"


def diagnose(
    log: TrainingLog, language: Language = "zh", *, flips: Sequence[Finding] = (), now: float | None = None
) -> dict[str, Any]:
    """``current_risks`` and ``recommendations`` by risk ("-" where it is Low), their ``evidence``, ``other_risks``.

    ``flips`` are findings from the ledger. ``now`` is the Unix time that a log's silence is counted to.
    """
    current = {
        "overfitting": overfitting(log),
        "underfitting": underfitting(log),
        "catastrophic_forgetting": [*forgetting(log), *flips],
    }
    return {
        "current_risks": {risk: highest(findings) for risk, findings in current.items()},
        "recommendations": {risk: _advice(risk, findings, language) for risk, findings in current.items()},
        "evidence": {risk: [_told(one, log, language) for one in findings] for risk, findings in current.items()},
        "other_risks": {
            risk: {
                "level": highest(findings),
                "recommendation": _advice(risk, findings, language),
                "evidence": [_told(one, log, language) for one in findings],
            }
            for risk, findings in other_risks(log, now).items()
        },
        "log": _about(log),
    }


def _advice(risk: str, findings: Sequence[Finding], language: Language) -> str:
    return "-" if highest(findings) == "Low" else recommendation(risk, language)


def _told(finding: Finding, log: TrainingLog, language: Language) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "level": finding.level,
        "range": [finding.first, finding.last],
        "values": finding.values,
        "text": evidence(finding, log.axis, language),
    }


def _about(log: TrainingLog) -> dict[str, Any]:
    rows = float(log.curve.bins["rows"].sum())
    return {
        "path": str(log.path),
        "format": log.format.name if log.format else None,
        "axis": log.axis,
        "rows": int(rows),
        "last": log.last if math.isfinite(log.last) else None,
        "total": log.facts.total,
        "validations": {name or "validation": len(points) for name, points in log.validations.items()},
        "parameters": log.facts.parameters,
    }
