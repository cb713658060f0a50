"""A run as one page to read: report.html, and a page that compares several runs."""

from jaxpmi.runs.writers.html_report.page import REPORT_FILE
from jaxpmi.runs.writers.html_report.page import write_comparison
from jaxpmi.runs.writers.html_report.page import write_report

__all__ = ["REPORT_FILE", "write_comparison", "write_report"]
