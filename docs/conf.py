"""Sphinx configuration: the pages of this folder and an API reference that is generated from the package.

pip install -e '.[docs]' && sphinx-build -W docs docs/_build
"""

import ast
import inspect
import re
import shutil
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "hypodask"

project = "hypodask"
author = "The hypodask developers"
copyright = author  # noqa: A001 - Sphinx's name
release = metadata.version("hypodask")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["_build", "images", "results", "tables"]
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px", "sidebar_width": "240px", "body_max_width": "none"}
toc_object_entries = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autosummary_generate = False
maximum_signature_line_length = 80
napoleon_google_docstring = False
myst_heading_anchors = 3
# Pages link to files of the repository (examples, the README), which are no pages of the site.
suppress_warnings = ["myst.header", "myst.xref_missing", "ref.python", "ref.ref"]

PUBLIC = (
    "hypodask",
    "hypodask.stats",
    "hypodask.report",
    "hypodask.phantom",
    "hypodask.training",
    "hypodask.study",
    "hypodask.cluster",
    "hypodask.core",
    "hypodask.scan",
    "hypodask.alignment",
    "hypodask.segmentation",
    "hypodask.networks",
    "hypodask.quality",
    "hypodask.image",
    "hypodask.storage",
    "hypodask.files",
    "hypodask.learning",
)

MODULES = ("hypodask.core.errors", "hypodask.demo")
"""Modules that are public as a whole."""

FIRST = ("Cohort", "process", "open_results", "plan", "status", "process_scan", "read_scan", "align", "segment")
"""What most readers look for comes first on the page of the package."""


def exported(package: str) -> dict[str, str]:
    """Names that a package offers, as its stub has them, and the modules that they are imported from."""
    stub = PACKAGE.joinpath(*package.split(".")[1:], "__init__.pyi")
    statements = [one for one in ast.parse(stub.read_text(encoding="utf-8")).body if isinstance(one, ast.ImportFrom)]
    names = {alias.name: f"{package}.{one.module or ''}".strip(".") for one in statements for alias in one.names}
    return {name: names[name] for name in dict.fromkeys([*FIRST, *names]) if name in names}


_public: dict[str, str] = {}
"""Names under which objects are documented, by the module that defines them and their name there."""


def api_page(package: str, documented: dict[int, str]) -> str:
    """A page about one package. What an earlier page has documented is only in the table at its top, with a link."""
    offered = {name: (getattr(import_module(package), name), home) for name, home in exported(package).items()}
    modules = [value.__name__ for value, _ in offered.values() if inspect.ismodule(value)]
    table, entries = [], []
    for name, (value, home) in offered.items():
        if inspect.ismodule(value):
            continue
        if id(value) not in documented:
            # Only the module that defines a constant has its docstring.
            is_code = inspect.isclass(value) or inspect.isfunction(value)
            documented[id(value)] = f"{package}.{name}" if is_code else f"{home}.{name}"
            _public[f"{getattr(value, '__module__', home)}.{name}"] = documented[id(value)]
            entries += [*_entry(value, documented[id(value)]), ""]
        table.append(f"   ~{documented[id(value)]}".replace(f"~{package}.", "~"))
    lines = [package, "=" * len(package), "", f".. automodule:: {package}", "   :no-members:", ""]
    lines += [".. autosummary::", "   :nosignatures:", "", *table, ""] if table else []
    return "\n".join([*lines, *(f"* :doc:`{module}`" for module in modules), "", *entries])


def _entry(value: object, name: str) -> list[str]:
    if inspect.isclass(value):
        return [f".. autoclass:: {name}", "   :members:", "   :no-inherited-members:"]
    return [f".. autofunction:: {name}"] if inspect.isfunction(value) else [f".. autodata:: {name}", "   :no-value:"]


def module_page(module: str) -> str:
    """A page about one module, with everything public in it."""
    return "\n".join([module, "=" * len(module), "", f".. automodule:: {module}", "   :members:", ""])


def variables_page() -> str:
    """Every variable of the results dataset, with its dimensions and unit."""
    from hypodask.core.variables import DERIVED, RESULTS

    title = "Variables of the results"
    lines = [title, "=" * len(title), "", ".. list-table::", "   :header-rows: 1", ""]
    rows = [("Variable", "Dimensions", "Type", "Unit", "Meaning")]
    rows += [(f"``{v.name}``", ", ".join(v.dims), v.dtype, v.units, v.description) for v in (*RESULTS, *DERIVED)]
    for row in rows:
        lines += [f"   {'* -' if number == 0 else '  -'} {cell}" for number, cell in enumerate(row)]
    return "\n".join([*lines, ""])


def write_api(_: Any) -> None:
    """Write the pages of the API reference anew."""
    folder = HERE / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    documented: dict[int, str] = {}
    pages = {package: api_page(package, documented) for package in PUBLIC}
    pages["variables"] = variables_page()
    pages |= {module: module_page(module) for module in MODULES}
    for name, text in pages.items():
        (folder / f"{name}.rst").write_text(text, encoding="utf-8")
    contents = ["API reference", "=============", "", ".. toctree::", "   :maxdepth: 1", ""]
    contents += [f"   {name}" for name in pages]
    (folder / "index.rst").write_text("\n".join([*contents, ""]), encoding="utf-8")


_plain: dict[str, list[str]] = {}


def keep_plain(_: Any, what: str, name: str, __: Any, ___: Any, lines: list[str]) -> None:
    """Remember the docstring of an attribute, before napoleon takes the words before its first colon for a type."""
    if what in {"attribute", "data", "property"}:
        _plain[name] = list(lines)


def restore_plain(_: Any, __: str, name: str, ___: Any, ____: Any, lines: list[str]) -> None:
    """Undo what napoleon did to the docstring of an attribute."""
    if name in _plain:
        lines[:] = _plain.pop(name)


def plain_defaults(*event: Any) -> tuple[str, str] | None:
    """Replace default values that Sphinx cannot parse, such as ``<factory>``, by ``...``."""
    signature, returns = event[-2:]
    return (re.sub(r"=\s*<\w[^>]*>", "= ...", signature), returns) if signature and "<" in signature else None


def link_to_public(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Resolve a reference to the module that defines an object, which is documented under the name of its package."""
    target = _public.get(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or target is None:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], target, node, content)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_api)
    app.connect("missing-reference", link_to_public)
    app.connect("autodoc-process-signature", plain_defaults)
    app.connect("autodoc-process-docstring", keep_plain, priority=400)
    app.connect("autodoc-process-docstring", restore_plain, priority=600)
