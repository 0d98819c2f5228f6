"""Figures and the report of a study: one self-contained HTML page, readable without the cluster or JAX.

====================  =====================================================================
module                what it makes
====================  =====================================================================
``figures``           groups as boxes and points with significance brackets
``forest``            the effect of each site and of all together
``slices``            coronal slices with outlines, and the head with its intracranial volume
``pictures``          what those figures draw, read from the store of a scan
``tables``            tables of the statistics as text for people
``page``              the HTML page, and which scans get a picture on it
====================  =====================================================================
"""

from hypodask.report.figures import group_figure
from hypodask.report.forest import forest_figure
from hypodask.report.page import render, write, write_report
from hypodask.report.pictures import Pictures, read_pictures
from hypodask.report.slices import Plane, Slices, plane_figure, slice_figure

__all__ = [
    "Pictures",
    "Plane",
    "Slices",
    "forest_figure",
    "group_figure",
    "plane_figure",
    "read_pictures",
    "render",
    "slice_figure",
    "write",
    "write_report",
]
