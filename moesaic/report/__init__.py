"""A run as one page to read in a browser, and two runs side by side.

Knows nothing about models: everything comes from the files that a run leaves behind.
"""

from moesaic.report.continual import write_continual
from moesaic.report.page import compare_reports, write_report

__all__ = ["compare_reports", "write_continual", "write_report"]
