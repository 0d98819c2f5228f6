import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from simulated_sites import dataset
from statsmodels.regression.mixed_linear_model import MixedLM

from hypodask import stats
from hypodask.stats.sites.mixed import fit_random_intercept


def draw(seed, sites=6, site_sd=30.0, n=10, *, group_by_site=False):
    """Values, group and age, and site of scans at sites of different sizes; no group differs."""
    rng = np.random.default_rng(seed)
    site = np.repeat(np.arange(sites), np.maximum(4, rng.poisson(n * np.geomspace(0.4, 2, sites))))
    ill = site % 2 if group_by_site else rng.random(len(site)) < np.linspace(0.2, 0.8, sites)[site]
    age = rng.uniform(40, 80, len(site))
    y = 850 - 2 * (age - 60) + site_sd * rng.normal(size=sites)[site] + 60 * rng.normal(size=len(site))
    return y, np.column_stack([ill, age]).astype(float), site


class Dense:
    """The same model by whole matrices, as Kenward and Roger write it."""

    def __init__(self, y, x, site):
        self.y, self.x = y, np.column_stack([np.ones(len(y)), x])
        same = (site[:, None] == site).astype(float)
        self.parts = [same, np.eye(len(y))]

    def solve(self, variances):
        inverse = np.linalg.inv(sum(v * part for v, part in zip(variances, self.parts, strict=True)))
        phi = np.linalg.inv(self.x.T @ inverse @ self.x)
        return inverse, phi, inverse - inverse @ self.x @ phi @ self.x.T @ inverse

    def deviance(self, log_variances):
        inverse, phi, projection = self.solve(np.exp(log_variances))
        return -np.linalg.slogdet(inverse)[1] - np.linalg.slogdet(phi)[1] + self.y @ projection @ self.y

    def errors_and_df(self, variances):
        v, phi, projection = self.solve(variances)
        pairs = [(i, j) for i in range(2) for j in range(2)]
        p = [-self.x.T @ v @ part @ v @ self.x for part in self.parts]
        information = [np.trace(projection @ self.parts[i] @ projection @ self.parts[j]) / 2 for i, j in pairs]
        w = np.linalg.inv(np.reshape(information, (2, 2)))
        q = {(i, j): self.x.T @ v @ self.parts[i] @ v @ self.parts[j] @ v @ self.x for i, j in pairs}
        widening = sum(w[pair] * (q[pair] - p[pair[0]] @ phi @ p[pair[1]]) for pair in pairs)
        slope = np.array([np.diag(phi @ one @ phi) for one in p])
        df = 2 * np.diag(phi) ** 2 / np.einsum("ic,ij,jc->c", slope, w, slope)
        return np.sqrt(np.diag(phi + 2 * phi @ widening @ phi)), df


@pytest.mark.parametrize(("site_sd", "group_by_site"), [(30, False), (60, True), (0, False)])
def test_variances_errors_and_degrees_of_freedom_are_those_of_whole_matrices(site_sd, group_by_site):
    data = draw(1, site_sd=site_sd, group_by_site=group_by_site)
    found, dense = fit_random_intercept(*data), Dense(*data)
    best = minimize(dense.deviance, [6.0, 8.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-11})
    np.testing.assert_allclose([found.site_sd, found.residual_sd], np.exp(best.x / 2), rtol=1e-5, atol=0.01)
    errors, df = dense.errors_and_df([found.site_sd**2, found.residual_sd**2])
    np.testing.assert_allclose(found.errors, errors[1:], rtol=1e-8)
    np.testing.assert_allclose(found.df, df[1:], rtol=1e-8)


def test_slopes_and_variances_are_those_of_statsmodels():
    y, x, site = draw(2, sites=8, site_sd=60, n=20)
    found = fit_random_intercept(y, x, site)
    expected = MixedLM(y, np.column_stack([np.ones(len(y)), x]), groups=site).fit(reml=True)
    np.testing.assert_allclose(found.slopes, expected.fe_params[1:], rtol=1e-3)
    assert found.site_sd == pytest.approx(np.sqrt(expected.cov_re[0, 0]), rel=1e-3)
    assert found.residual_sd == pytest.approx(np.sqrt(expected.scale), rel=1e-4)
    # Kenward and Roger's errors are larger, but hardly so with many scans.
    assert (found.errors >= expected.bse_fe[1:] * (1 - 1e-4)).all()
    np.testing.assert_allclose(found.errors, expected.bse_fe[1:], rtol=0.01)


def test_a_group_that_is_the_same_within_sites_is_tested_as_the_means_of_sites():
    """With equal numbers of scans at each site Student's test of the means is exact: eight sites are eight values."""
    rng = np.random.default_rng(4)
    y = 800 + np.repeat(50 * rng.normal(size=8), 15) + 40 * rng.normal(size=120)
    found = fit_random_intercept(y, np.repeat([0.0, 1] * 4, 15)[:, None], np.repeat(np.arange(8), 15))
    means = y.reshape(8, 15).mean(axis=1)
    expected = scipy.stats.ttest_ind(means[1::2], means[::2])
    assert found.df[0] == pytest.approx(6, rel=1e-6)
    assert found.slopes[0] / found.errors[0] == pytest.approx(expected.statistic, rel=1e-6)


def test_what_only_two_sites_differ_in_is_not_tested():
    y, x, site = draw(5, sites=2, group_by_site=True)
    ds = dataset(y[:, None], site=[f"s{j}" for j in site], group=np.where(x[:, 0], "PLS", "control"), age=x[:, 1])
    table = stats.mixed_model(ds, "volume_mm3", structure="part_0", covariates=["group", "age"], reference="control")
    by_term = table.set_index("term")
    assert by_term.loc["group=PLS", "reason"] == "there are too few sites to separate the covariate from them"
    assert np.isnan(by_term.loc["group=PLS", "p"])
    assert by_term.loc["age", "p"] < 0.05


def test_values_without_a_residual_have_a_reason():
    site, age = np.repeat(np.arange(3), 5), np.tile([40.0, 50, 60, 70, 80], 3)
    ds = dataset((800 + 10 * site - 2 * age)[:, None], site=[f"s{j}" for j in site], age=age)
    row = stats.mixed_model(ds, "volume_mm3", structure="part_0", covariates=["age"]).iloc[0]
    assert (row.reason, np.isnan(row.p)) == ("sites and covariates explain the values completely", True)


@settings(deadline=None, max_examples=10)
@given(st.randoms(use_true_random=False), st.integers(0, 50), st.floats(1e-6, 1e6))
def test_order_units_and_names_of_sites_change_nothing(random, seed, unit):
    y, x, site = draw(seed)
    order, names = random.sample(range(len(y)), len(y)), np.array(random.sample(range(6), 6))
    was, now = fit_random_intercept(y, x, site), fit_random_intercept(unit * y[order], x[order], names[site][order])
    np.testing.assert_allclose(now.slopes, unit * was.slopes, rtol=1e-6)
    np.testing.assert_allclose(now.errors, unit * was.errors, rtol=1e-6)
    np.testing.assert_allclose(now.df, was.df, rtol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("site_sd", [0.0, 30.0, 60.0])
@pytest.mark.parametrize(("sites", "group_by_site"), [(3, False), (8, False), (6, True)])
def test_mixed_models_keep_their_level(sites, group_by_site, site_sd):
    """1000 studies of sites of about 20: 5 % +- 3 Monte Carlo errors; less if few sites hardly differ."""
    p = []
    for seed in range(1000):
        found = fit_random_intercept(*draw(seed, sites, site_sd, 20, group_by_site=group_by_site))
        p.append(2 * scipy.stats.t.sf(abs(found.slopes[0] / found.errors[0]), found.df[0]))
    rate, error = np.mean(np.array(p) < 0.05), np.sqrt(0.05 * 0.95 / 1000)
    print(f"mixed: {sites} sites, groups by site {group_by_site}, SD of sites {site_sd}: {rate:.3f}")
    assert rate <= 0.05 + 3 * error
    assert group_by_site or not site_sd or rate >= 0.05 - 3 * error
