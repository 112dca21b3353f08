"""Reads a run folder and writes its page: one self-contained HTML file."""

from tfkd_fast.report.page import write_report
from tfkd_fast.report.run import Run, read_run

__all__ = ["Run", "read_run", "write_report"]
