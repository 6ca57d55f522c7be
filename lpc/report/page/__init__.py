"""The report as one self-contained HTML file, for a browser without a network."""

from lpc.report.page.page import family_page, run_page

__all__ = ["family_page", "run_page"]
