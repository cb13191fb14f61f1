"""The report of a run: one HTML file that shows what was learned, offline and anywhere."""

from dreamprm.reporting.page import REPORT_FILE, write_comparison, write_report

__all__ = ["REPORT_FILE", "write_comparison", "write_report"]
