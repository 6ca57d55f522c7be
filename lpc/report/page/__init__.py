"""The report as one self-contained HTML file, for a browser without a network."""

from lpc.report.page.page import comparison_page, family_page, run_page

__all__ = ["comparison_page", "family_page", "run_page"]
