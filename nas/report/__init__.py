"""What a run leaves for people and machines: `report.json`, one HTML file, and a table in the terminal."""

from nas.report.compare import verdict
from nas.report.html import write_html
from nas.report.record import check_report, read_report, write_json
from nas.report.table import terminal_table

__all__ = ["check_report", "read_report", "terminal_table", "verdict", "write_html", "write_json"]
