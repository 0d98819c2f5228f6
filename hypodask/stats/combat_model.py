"""A fitted ComBat model: its parameters, and the JSON in which they are kept or sent to other sites."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hypodask.errors import ResultsError
from hypodask.stats.covariates import Covariate
from hypodask.stats.documents import read_covariates, read_document, write_document
from hypodask.stats.shrinkage import Prior

SCHEMA = "hypodask.combat"
VERSION = 1


@dataclass(frozen=True, eq=False)
class ComBat:
    """A fitted model: what :func:`~hypodask.stats.apply_combat` needs, and what was left out of the fit."""

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
    n: Float[ndarray, "site structure"]
    """Volumes behind each estimate."""
    mean: Float[ndarray, " structure"]
    """In the unit of the variable, where all covariates are 0."""
    sd: Float[ndarray, " structure"]
    """Of the residuals, in the unit of the variable."""
    coefficients: Float[ndarray, "column structure"]
    """Unit of the variable per unit of the covariate."""
    shift: Float[ndarray, "site structure"]
    """In ``sd``; NaN where there is no estimate, for which :attr:`left_out` has the reason."""
    variance_ratio: Float[ndarray, "site structure"]
    """Variance of the site / ``sd ** 2``."""
    left_out: Mapping[str, str]
    """Reasons, by ``site``, ``structure`` or ``site: structure``."""

    def to_json(self) -> str:
        """The model as text that :meth:`from_json` reads."""
        return write_document(vars(self), SCHEMA, VERSION)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a model.

        Raises
        ------
        ResultsError
            If the text is no such model, one of another version, or damaged.
        """
        content = read_document(text, SCHEMA, VERSION)
        try:
            content["covariates"] = read_covariates(content["covariates"])
            for name in ("sites", "structures"):
                content[name] = tuple(map(str, content[name]))
            for name in ("n", "mean", "sd", "coefficients", "shift", "variance_ratio"):
                content[name] = np.array(content[name], dtype=np.float64)
            # Without covariates they are an empty list, whose second axis is lost.
            content["coefficients"] = content["coefficients"].reshape(-1, len(content["structures"]))
            model = cls(**content)
        except (TypeError, KeyError, ValueError) as err:
            raise ResultsError(f"the ComBat model is damaged ({err}): fit it again") from err
        model._check_shapes()
        return model

    def _check_shapes(self) -> None:
        by_site = (len(self.sites), len(self.structures))
        columns = sum(len(covariate.columns) for covariate in self.covariates)
        needed = {"n": by_site, "shift": by_site, "variance_ratio": by_site, "mean": by_site[1:], "sd": by_site[1:]}
        for name, shape in (needed | {"coefficients": (columns, by_site[1])}).items():
            if getattr(self, name).shape != shape:
                raise ResultsError(f"{name} of the ComBat model has not the shape {shape}: it is damaged, fit it again")
