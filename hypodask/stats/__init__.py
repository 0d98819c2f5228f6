"""Group statistics on the results dataset: xarray and pandas, with the tests of scipy and statsmodels.

Functions that add variables take and return an ``xr.Dataset``, so ``ds.pipe(stats.find_outliers)`` works.
Functions that test return a tidy table with one row per comparison.

====================  =====================================================================
module                what is decided there
====================  =====================================================================
``samples``           which scans enter an analysis, and in which group each one is
``outliers``          IQR, distance from the median, quality: who is excluded and why
``exclusions``        comparisons under each rule, and whether exclusion depends on group
``icv``               adjustment of a volume to the size of the head, as in the paper
``head_size``         other adjustments, side by side
``groups``            two groups against each other: differences, intervals, tests
``permutation``       the same by permutation of the groups
``multiplicity``      adjustment for many comparisons
``associations``      a volume against age, disease duration and other covariates
``covariates``        what an analysis is adjusted for, as columns of a model
``ancova``            groups and associations adjusted for covariates
``norms``             where a volume stands among people of its age, sex and size of the head
``measured``          groups compared by volumes of which each has its own uncertainty
``repeated``          several sessions: how well a volume repeats, how fast it changes
``power``             how many scans the next study needs
``demographics``      who was scanned: Table 1
``documents``         JSON that goes from site to site
``moments``           sums of a site from which regressions follow
``combat``            volumes of several sites on one scale
``combat_model``      what a fit of ComBat found, and how it is stored
``shrinkage``         estimates of a site drawn towards what its structures share
``mixed``             a regression with an intercept for each site, drawn at random
``sites``             a difference at each site and over all sites
``federated``         the same from sums, where the rows of persons stay at their site
``published``         all of it in the order of the paper, in one call
====================  =====================================================================
"""

from hypodask.stats.ancova import compare_adjusted, partial_correlate
from hypodask.stats.associations import correlate
from hypodask.stats.combat import apply_combat, fit_combat, harmonize
from hypodask.stats.combat_model import ComBat
from hypodask.stats.demographics import add_progression_slope, demographics
from hypodask.stats.exclusions import check_exclusions, compare_exclusions
from hypodask.stats.federated import SiteSummary, pool_combat, pool_effects, pool_regression, summarize_site
from hypodask.stats.groups import compare_groups, compare_summaries
from hypodask.stats.head_size import adjust_icv, compare_icv_adjustments, relate_to_icv
from hypodask.stats.icv import normalize_icv
from hypodask.stats.measured import compare_measured
from hypodask.stats.multiplicity import adjust_p
from hypodask.stats.norms import Norms, adapt_norms, apply_norms, centile_curves, check_norms, fit_norms
from hypodask.stats.outliers import (
    exclude,
    find_far_outliers,
    find_low_quality,
    find_outliers,
    iqr_fences,
    list_exclusions,
)
from hypodask.stats.permutation import permute_groups
from hypodask.stats.power import plan_groups
from hypodask.stats.published import PaperResult, paper
from hypodask.stats.repeated import annual_change, repeatability
from hypodask.stats.samples import summarize_groups
from hypodask.stats.sites import combine_sites, compare_sites, leave_one_site_out, mixed_model

__all__ = [
    "ComBat",
    "Norms",
    "PaperResult",
    "SiteSummary",
    "adapt_norms",
    "add_progression_slope",
    "adjust_icv",
    "adjust_p",
    "annual_change",
    "apply_combat",
    "apply_norms",
    "centile_curves",
    "check_exclusions",
    "check_norms",
    "combine_sites",
    "compare_adjusted",
    "compare_exclusions",
    "compare_groups",
    "compare_icv_adjustments",
    "compare_measured",
    "compare_sites",
    "compare_summaries",
    "correlate",
    "demographics",
    "exclude",
    "find_far_outliers",
    "find_low_quality",
    "find_outliers",
    "fit_combat",
    "fit_norms",
    "harmonize",
    "iqr_fences",
    "leave_one_site_out",
    "list_exclusions",
    "mixed_model",
    "normalize_icv",
    "paper",
    "partial_correlate",
    "permute_groups",
    "plan_groups",
    "pool_combat",
    "pool_effects",
    "pool_regression",
    "relate_to_icv",
    "repeatability",
    "summarize_groups",
    "summarize_site",
]
