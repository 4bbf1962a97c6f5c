"""One page that shows a mask: its picture, its tiles, predictions, its kernel."""

from maskdsl.report.page import Report, report

__all__ = ["Report", "report"]
