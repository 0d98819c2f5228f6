"""Group statistics on the results dataset: xarray and pandas, with the tests of scipy and statsmodels.

Functions that add variables take and return an ``xr.Dataset``, so ``ds.pipe(stats.find_outliers)`` works.
Functions that test return a tidy table with one row per comparison.

====================  =======================================================================
module                what it has
====================  =======================================================================
``samples``           which scans enter an analysis, and in which group each of them is
``outliers``          IQR, distance from the median, quality: which scans are excluded
``exclusions``        comparisons under each rule, and whether exclusion depends on group
``head_size``         volumes adjusted for ICV: the paper's way and others, side by side
``groups``            two groups compared: differences, intervals, tests
``permutation``       the same by permutation of the groups
``multiplicity``      p-values adjusted for many comparisons
``associations``      a volume against age, disease duration and other covariates
``covariates``        what an analysis is adjusted for, as columns of a model
``ancova``            groups and associations adjusted for covariates
``measured``          groups compared by volumes that each have their own uncertainty
``repeated``          several sessions: how well a volume repeats, how fast it changes
``power``             how many scans the next study needs
``norms``             the model of a volume among people of the same age, sex and ICV
``centiles``          z and centile of a scan in these norms, and curves to draw
``location_scale``    the regression that norms are fitted with
``table_one``         who was scanned: Table 1
``sites``             several sites: harmonisation, meta-analysis, mixed model, federated sums
``published``         the analysis of the paper in its order, in one call
====================  =======================================================================
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
