"""Several sites: harmonisation, group differences at each site and over all, and the same from sums that sites send.

==================  ==========================================================================
module              what it has
==================  ==========================================================================
``combat``          volumes of several sites on one scale (ComBat)
``combat_model``    a fitted ComBat model, and its JSON
``shrinkage``       the empirical Bayes step of ComBat
``effects``         a difference at each site, meta-analysis, mixed model
``mixed``           the fit of a linear model with a random intercept for each site
``moments``         sums of a site that are sufficient for regressions
``federated``       regressions, meta-analysis and ComBat from the sums that sites send
``documents``       JSON that sites exchange
``adapted_norms``   norms moved to another site, by its controls
==================  ==========================================================================
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
