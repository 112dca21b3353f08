"""Reads a run folder and writes its page: one self-contained HTML file."""

from tfkd_fast.report.page import write_report
from tfkd_fast.report.run import RunRecord, read_run

__all__ = ["RunRecord", "read_run", "write_report"]
