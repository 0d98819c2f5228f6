"""How far one scan's result can be trusted, from that scan alone: measures, their ranges on sound scans, one score.

    outline.py   of the outlines: certainty, agreement, symmetry, shape, place, what is cut off
    image.py     of the image: noise, resolution, contrast, air, halves
    score.py     all measures of a scan; measures against their ranges, as a number and in words

No measure knows a diagnosis, and none but a volume that hardly any adult has judges the size of the hypothalamus, so
that atrophy costs no quality.
"""

from hypodask.quality.score import MEASURES, Measures, Quality, examine, judge

__all__ = ["MEASURES", "Measures", "Quality", "examine", "judge"]
