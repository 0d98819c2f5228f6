"""The names that scripts rely on, and what it costs to import them."""

import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

import hypodask

FIXED_NAMES = {
    "Cohort",
    "HypodaskError",
    "align",
    "open_results",
    "phantom",
    "process",
    "process_scan",
    "read_scan",
    "report",
    "segment",
    "stats",
}


def loaded_after(statement: str) -> set[str]:
    """Top-level packages in memory after a statement in a new interpreter."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split())


def test_fixed_names_are_public() -> None:
    assert set(hypodask.__all__) >= FIXED_NAMES


@pytest.mark.parametrize("name", sorted(hypodask.__all__))
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(hypodask, name) is not None


def test_all_lists_what_is_exported_and_nothing_twice() -> None:
    assert len(hypodask.__all__) == len(set(hypodask.__all__))
    assert set(hypodask.__all__) <= {*dir(hypodask), "__version__"}


def test_names_in_every_all_exist_and_are_documented() -> None:
    for info in pkgutil.walk_packages(hypodask.__path__, "hypodask."):
        module = import_module(info.name)
        values = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
        assert [name for name, value in values.items() if inspect.isroutine(value) and not value.__doc__] == [], (
            info.name
        )


def test_public_names_are_documented() -> None:
    assert [name for name in hypodask.__all__ if not getattr(hypodask, name).__doc__] == []


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="segmentt"):
        hypodask.segmentt  # noqa: B018


def test_import_is_light() -> None:
    assert not {"jax", "dask", "zarr", "pandas", "numpy"} & loaded_after("import hypodask")


@pytest.mark.parametrize("part", ["stats", "report", "open_results"])
def test_analysis_runs_without_jax_and_dask_cluster(part: str) -> None:
    assert not {"jax", "flax", "distributed"} & loaded_after(f"import hypodask; hypodask.{part}")


def test_command_line_starts_without_the_heavy_half() -> None:
    assert not {"jax", "dask", "zarr", "pandas"} & loaded_after("import hypodask.cli")


def test_modules_of_the_first_version_can_still_be_imported_with_a_warning() -> None:
    code = (
        "import importlib, warnings\n"
        "from hypodask._moved import MOVED\n"
        "for old, new in MOVED.items():\n"
        "    with warnings.catch_warnings(record=True) as caught:\n"
        "        warnings.simplefilter('always')\n"
        "        module = importlib.import_module(f'hypodask.{old}')\n"
        "    assert module is importlib.import_module(f'hypodask.{new}'), old\n"
        "    assert module.__spec__.name == module.__name__ == f'hypodask.{new}', old\n"
        "    assert any(f'hypodask.{old} is now hypodask.{new};' in str(w.message) for w in caught), old"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
