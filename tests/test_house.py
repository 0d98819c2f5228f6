"""What the project promises about itself: one version, current pages, nothing that ties it to one machine."""

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from importlib.resources import files
from pathlib import Path

import pytest

import hypodask
import hypodask.core.errors
from hypodask.core.errors import HypodaskError, ScanError

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = CONFIGURATION["project"]
TEXT_SUFFIXES = {".py", ".md", ".toml", ".json", ".cff", ".html", ".j2", ".css", ""}


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def tracked_files() -> list[Path]:
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def subclasses(error: type[HypodaskError]) -> set[type[HypodaskError]]:
    return {error}.union(*(subclasses(child) for child in error.__subclasses__()))


def imported_packages(folder: Path) -> set[str]:
    trees = [ast.parse(source.read_text(encoding="utf-8")) for source in folder.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in plain | named} - set(sys.stdlib_module_names) - {"hypodask"}


def test_version_is_the_same_in_metadata_changelog_and_citation() -> None:
    assert hypodask.__version__ == PROJECT["version"]
    assert f"\n## [{PROJECT['version']}]" in page("CHANGELOG.md")
    assert f"\nversion: {PROJECT['version']}\n" in page("CITATION.cff")


@pytest.mark.parametrize("name", ["run", "test"])
def test_readme_marks_the_newcomers_command(name: str) -> None:
    block = re.search(rf"<!-- newcomer: {name} -->\s*```\w*\n(.*?)```", page("README.md"), re.DOTALL)
    assert block is not None
    assert block[1].splitlines()[0].startswith("pip install ")


def test_examples_in_the_readme_use_names_that_exist() -> None:
    blocks = re.findall(r"```python\n(.*?)```", page("README.md"), re.DOTALL)
    nodes = [node for block in blocks for node in ast.walk(ast.parse(block))]
    chains = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    used = [chain.split(".")[1:] for chain in chains if re.fullmatch(r"hypodask(\.\w+)+", chain)]
    assert used
    for names in used:
        found = hypodask
        for name in names:
            found = getattr(found, name)


def test_page_of_outputs_is_what_the_code_writes() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "write_outputs.py"))
    assert page("docs/outputs.md") == written["renewed"](page("docs/outputs.md")), "run docs/write_outputs.py"


def test_figures_of_the_pages_are_those_that_were_measured() -> None:
    outdated = runpy.run_path(str(ROOT / "docs" / "write_figures.py"))["outdated"]
    assert [path.name for path in outdated()] == [], "run docs/write_figures.py"
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    # A mark that begins a line would make Markdown take that line for HTML.
    assert [path.name for path in pages if re.search(r"^\s*<!-- figure", path.read_text("utf-8"), re.MULTILINE)] == []


def test_every_scan_error_has_a_cure_in_the_docs() -> None:
    missing = {error.__name__ for error in subclasses(ScanError)} - set(
        re.findall(r"`(\w+)`", page("docs/reading-scans.md"))
    )
    assert not missing


def test_every_error_is_drawn_in_the_tree() -> None:
    assert {error.__name__ for error in subclasses(HypodaskError)} <= set(
        re.findall(r"\w+", hypodask.core.errors.__doc__ or "")
    )


def test_design_draws_the_floors_that_are_checked() -> None:
    drawn: dict[int, set[str]] = {}
    for name, floor in re.findall(r"^      (\w+)(?:\.py|/) +(\d+)  ", page("docs/design.md"), re.MULTILINE):
        drawn.setdefault(int(floor), set()).add(name)
    layers = CONFIGURATION["tool"]["importlinter"]["contracts"][0]["layers"]
    assert dict(enumerate(set(re.findall(r"\w+", layer)) for layer in reversed(layers))) == drawn


def test_relative_links_of_the_pages_lead_somewhere() -> None:
    for source in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", source.read_text(encoding="utf-8"))
        assert [link for link in links if not (source.parent / link).exists()] == [], source.name


def test_every_package_that_is_imported_is_declared() -> None:
    extras = PROJECT["optional-dependencies"].values()
    declared = [*PROJECT["dependencies"], *(requirement for extra in extras for requirement in extra)]
    names = {re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-") for requirement in declared}
    distributions = packages_distributions()
    undeclared = {
        package
        for package in imported_packages(ROOT / "hypodask")
        if not names & {d.lower().replace("_", "-") for d in distributions.get(package, [package])}
    }
    assert undeclared == set()


def test_the_installed_package_carries_its_type_marker() -> None:
    assert files("hypodask").joinpath("py.typed").is_file()


def test_no_tracked_file_names_a_machine_or_a_registry() -> None:
    local = re.compile(r"""[\s"'(=](/(work|home|root|Users|farm)/\w)|https?://[\w.-]*(pypi|npmjs|debian)[\w.]*/""")
    texts = [path for path in tracked_files() if path.suffix in TEXT_SUFFIXES]
    found = {
        path.relative_to(ROOT).as_posix(): match[0]
        for path in texts
        if (match := local.search(path.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_no_tracked_file_is_larger_than_the_package_can_afford() -> None:
    large = [path.name for path in tracked_files() if path.stat().st_size > 12_000_000]
    assert large == []
