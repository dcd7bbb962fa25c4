"""A run as one HTML file: no scripts, nothing from the network, light and dark, from a phone's width on.

A `Page` holds sections, and a section blocks: charts, heat maps, tables, texts. `write` puts a page into a file, and
`check` tries that before a run. The functions `quantized`, `statistics_over_time`, ... make the sections that several
commands have; what a command measured itself it puts into sections of its own.
"""

from metis_compile.html_report.blame import blame_section, read_blame
from metis_compile.html_report.blocks import (
    Block,
    Chart,
    Code,
    Facts,
    Figure,
    Fold,
    HeatMap,
    Legend,
    Line,
    Mark,
    Page,
    Section,
    Shares,
    Table,
    Text,
)
from metis_compile.html_report.cost import cost_section
from metis_compile.html_report.errors import ReportError
from metis_compile.html_report.policy_text import policy_section, policy_texts
from metis_compile.html_report.quantized import quantized_section
from metis_compile.html_report.rerun import rerun_section
from metis_compile.html_report.spectra import Spectrum, spectra, spectra_section
from metis_compile.html_report.statistics import read_statistics, statistics_section
from metis_compile.html_report.write import check, html, write

__all__ = [
    "Block",
    "Chart",
    "Code",
    "Facts",
    "Figure",
    "Fold",
    "HeatMap",
    "Legend",
    "Line",
    "Mark",
    "Page",
    "ReportError",
    "Section",
    "Shares",
    "Spectrum",
    "Table",
    "Text",
    "blame_section",
    "check",
    "cost_section",
    "html",
    "policy_section",
    "policy_texts",
    "quantized_section",
    "read_blame",
    "read_statistics",
    "rerun_section",
    "spectra",
    "spectra_section",
    "statistics_section",
    "write",
]
