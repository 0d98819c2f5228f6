import numpy as np
import pandas as pd
import pytest
from array_types import unchecked

from hypodask import stats
from hypodask.core.errors import ResultsError

MYOCARDIAL = [
    *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528),
    *(0.7590, 1.0000),
]
"""The fifteen p-values of the example in Benjamini and Hochberg 1995."""


def test_the_example_of_benjamini_and_hochberg_rejects_four_and_holm_three():
    table = pd.DataFrame({"p": MYOCARDIAL})
    adjusted = stats.adjust_p(stats.adjust_p(table, "fdr_bh", column="p"), "holm", column="p")
    assert (adjusted["p_fdr_bh"] < 0.05).sum() == 4
    assert (adjusted["p_holm"] < 0.05).sum() == 3


def test_any_dependence_costs_the_harmonic_sum():
    table = pd.DataFrame({"p": MYOCARDIAL})
    bh = stats.adjust_p(table, "fdr_bh", column="p")["p_fdr_bh"]
    by = stats.adjust_p(table, "fdr_by", column="p")["p_fdr_by"]
    np.testing.assert_allclose(by, np.minimum(bh * (1 / np.arange(1, 16)).sum(), 1))


def test_missing_p_values_stay_missing_and_do_not_count():
    table = pd.DataFrame({"p": [np.nan, *MYOCARDIAL]}, index=range(5, 21))
    adjusted = stats.adjust_p(table, column="p")["p_fdr_bh"]
    assert np.isnan(adjusted.iloc[0])
    expected = stats.adjust_p(table.iloc[1:], column="p")["p_fdr_bh"]
    np.testing.assert_array_equal(adjusted.iloc[1:], expected)
    assert stats.adjust_p(table.iloc[:1], column="p")["p_fdr_bh"].isna().all()


@pytest.mark.parametrize(
    ("method", "column", "message"),
    [
        ("fdr", "p", "'fdr'"),
        ("holm", "q", "'q'"),
        ("holm", "t", "0 to 1"),
        ("holm", "p_holm", "would be replaced"),
    ],
)
def test_what_cannot_be_adjusted_is_refused(method, column, message):
    with unchecked(), pytest.raises(ResultsError, match=message):
        stats.adjust_p(pd.DataFrame({"p": [0.1], "t": [2.0], "p_holm": [0.1]}), method, column=column)
