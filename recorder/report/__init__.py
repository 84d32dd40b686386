"""``report.html``: one self-contained page for a person who has 30 seconds."""

from recorder.report.page import build_report

__all__ = ["build_report"]
