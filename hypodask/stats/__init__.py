"""Group statistics on the results dataset: xarray and pandas, with the tests of scipy and statsmodels.

Functions that add variables take and return an ``xr.Dataset``, so ``ds.pipe(stats.find_outliers)`` works.
Functions that test return a tidy table with one row per comparison.

====================  =====================================================================
module                what is decided there
====================  =====================================================================
``samples``           which scans enter an analysis, and in which group each one is
``outliers``          the IQR rule per group, and who is excluded and why
``icv``               adjustment of a volume to the size of the head
``groups``            two groups against each other: differences, intervals, tests
``associations``      a volume against age, disease duration and other covariates
``demographics``      who was scanned: Table 1
``moments``           sums of a site from which regressions follow
``combat``            volumes of several sites on one scale
``sites``             a difference at each site and over all sites
``federated``         the same from sums, where the rows of persons stay at their site
``published``         all of it in the order of the paper, in one call
====================  =====================================================================
"""

from hypodask.stats.associations import correlate
from hypodask.stats.combat import ComBat, apply_combat, fit_combat, harmonize
from hypodask.stats.demographics import add_progression_slope, demographics
from hypodask.stats.federated import SiteSummary, pool_combat, pool_effects, pool_regression, summarize_site
from hypodask.stats.groups import compare_groups, compare_summaries
from hypodask.stats.icv import normalize_icv
from hypodask.stats.outliers import exclude, find_outliers, iqr_fences, list_exclusions
from hypodask.stats.published import PaperResult, paper
from hypodask.stats.samples import summarize_groups
from hypodask.stats.sites import combine_sites, compare_sites, leave_one_site_out, mixed_model

__all__ = [
    "ComBat",
    "PaperResult",
    "SiteSummary",
    "add_progression_slope",
    "apply_combat",
    "combine_sites",
    "compare_groups",
    "compare_sites",
    "compare_summaries",
    "correlate",
    "demographics",
    "exclude",
    "find_outliers",
    "fit_combat",
    "harmonize",
    "iqr_fences",
    "leave_one_site_out",
    "list_exclusions",
    "mixed_model",
    "normalize_icv",
    "paper",
    "pool_combat",
    "pool_effects",
    "pool_regression",
    "summarize_groups",
    "summarize_site",
]
