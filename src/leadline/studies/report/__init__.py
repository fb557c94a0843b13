"""The report of a study: one HTML file that needs nothing else, to be read by people who decide."""

from leadline.studies.report.page import write_report

__all__ = ["write_report"]
