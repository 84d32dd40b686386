"""What a check found, for a person and for a program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

SCHEMA = 1  # of the JSON: raised when a key changes its meaning or goes away, not when one is added

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """``check`` names what was looked at, ``found`` what it is like. Unless all is well, ``expected`` says what it should
    be like and ``action`` what to do. A ``problem`` stops a run or makes it worthless; a ``warning`` does not."""

    check: str
    level: Level
    found: str
    expected: str = ""
    action: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warning(check: str, found: str, expected: str, action: str) -> Finding:
    return Finding(check, "warning", found, expected, action)


def problem(check: str, found: str, expected: str, action: str) -> Finding:
    return Finding(check, "problem", found, expected, action)


def finding_from(content: dict[str, Any]) -> Finding:
    """From another process's JSON."""
    return Finding(**{key: str(content.get(key, "")) for key in ("check", "level", "found", "expected", "action")})  # type: ignore[arg-type]  # its own writer chose the level


def as_lines(finding: Finding) -> str:
    """One line, and two more where there is something to do. Lines of their own stay lines."""
    first, *others = finding.found.splitlines() or [""]
    lines = [f"  {finding.level:<8} {finding.check}: {first}", *(f"           {line}" for line in others)]
    if finding.expected:
        lines.append(f"           expected: {finding.expected}")
    if finding.action:
        lines.append(f"           to do: {finding.action}")
    return "\n".join(lines)


def summary(findings: Sequence[Finding]) -> str:
    problems, warnings = (sum(one.level == level for one in findings) for level in ("problem", "warning"))
    told = "everything is there" if not problems else f"{problems} problem{'s' if problems > 1 else ''}"
    return told + (f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else "")


def as_json(by_subject: Sequence[tuple[str, Sequence[Finding]]]) -> str:
    """``by_subject``: findings by what they are about, a watched run's model or ``this machine``."""
    findings = [finding for _, some in by_subject for finding in some]
    content = {
        "schema": SCHEMA,
        "ok": all(finding.level != "problem" for finding in findings),
        "problems": sum(finding.level == "problem" for finding in findings),
        "warnings": sum(finding.level == "warning" for finding in findings),
        "findings": [{"subject": subject, **asdict(finding)} for subject, some in by_subject for finding in some],
    }
    return json.dumps(content, indent=1, ensure_ascii=False)
