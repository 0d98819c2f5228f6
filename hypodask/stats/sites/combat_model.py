"""A fitted ComBat model: its parameters, and the JSON in which they are stored or sent to other sites."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hypodask.core.documents import ARRAY
from hypodask.core.errors import ResultsError
from hypodask.stats.covariates import Covariate
from hypodask.stats.sites.documents import read_document, write_document
from hypodask.stats.sites.shrinkage import Prior

_SCHEMA = "hypodask.combat"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class ComBat:
    """A fitted model for :func:`~hypodask.stats.apply_combat`, and the reasons for what was left out of the fit."""

    variable: str
    """Variable that it was fitted on."""
    site: str
    """Coordinate that holds the site."""
    on: str
    """Group whose scans it was fitted on, empty for all."""
    prior: Prior
    mean_only: bool
    """Whether variances were left as they are."""
    reference: str
    """Site whose volumes stay as they are, empty for none."""
    sites: tuple[str, ...]
    structures: tuple[str, ...]
    covariates: tuple[Covariate, ...]
    n: Annotated[Float[ndarray, "site structure"], ARRAY]
    """Volumes behind each estimate."""
    mean: Annotated[Float[ndarray, " structure"], ARRAY]
    """Mean in the unit of the variable, where all covariates are 0."""
    sd: Annotated[Float[ndarray, " structure"], ARRAY]
    """Standard deviation of the residuals, in the unit of the variable."""
    coefficients: Annotated[Float[ndarray, "column structure"], ARRAY]
    """Unit of the variable per unit of the covariate."""
    shift: Annotated[Float[ndarray, "site structure"], ARRAY]
    """Shift in units of ``sd``; NaN if there is no estimate, for which :attr:`left_out` has the reason."""
    variance_ratio: Annotated[Float[ndarray, "site structure"], ARRAY]
    """Variance of the site / ``sd ** 2``."""
    left_out: Mapping[str, str]
    """Reasons, by ``site``, ``structure`` or ``site: structure``."""

    def to_json(self) -> str:
        """The model as text that :meth:`from_json` reads."""
        return write_document(self, _SCHEMA, _VERSION)

    @classmethod
    def from_json(cls, text: str) -> "ComBat":
        """Read a model.

        Raises
        ------
        ResultsError
            If the text is not such a model, is one of another version, or is damaged.
        """
        model = read_document(cls, text, _SCHEMA, _VERSION, what="the ComBat model")
        if not model.coefficients.size:
            # Without covariates they have no rows, and JSON cannot hold the length of their second axis.
            model = replace(model, coefficients=np.zeros((0, len(model.structures))))
        model._check_shapes()
        return model

    def _check_shapes(self) -> None:
        by_site = (len(self.sites), len(self.structures))
        columns = sum(len(covariate.columns) for covariate in self.covariates)
        needed = {"n": by_site, "shift": by_site, "variance_ratio": by_site, "mean": by_site[1:], "sd": by_site[1:]}
        for name, shape in (needed | {"coefficients": (columns, by_site[1])}).items():
            if getattr(self, name).shape != shape:
                raise ResultsError(
                    f"the ComBat model has {name} of shape {getattr(self, name).shape}, needed {shape}: fit it again"
                )
