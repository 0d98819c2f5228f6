"""The shape of the package: what docs/design.md and CONTRIBUTING.md promise about its modules and names."""

import ast
import inspect
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import hypodask
from hypodask.core.structures import HEAD_SIZE, MAIN

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hypodask"
MODULES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
STUBS = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.pyi"))}
PAGES = "".join(page.read_text(encoding="utf-8") for page in [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
LONGEST_FUNCTION = 60
MOST_PARAMETERS = 7

PAPER = PACKAGE / "stats" / "published.py"
RECORDS = PACKAGE / "core" / "structures.py"

OF_COMMANDS = {"process", "plan", "run", "align"}
"""Functions whose parameters are options of a command."""

OF_PUBLISHED_SCRIPTS = {"paper", "fit_norms", "compare_sites", "fit_combat", "summarize_site"}
"""Functions with more keywords than a new one may have: scripts of users name them, so they stay."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of each ``from module import name``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.module or "", alias.name) for alias in node.names)


def exported(stub: Path) -> dict[str, str]:
    """Names that a package offers, each with the module that defines it."""
    package = module_name(stub)
    found = {}
    for node in ast.walk(STUBS[stub]):
        if isinstance(node, ast.ImportFrom):
            module = f"{package}.{node.module}" if node.module else package
            found |= {alias.name: module for alias in node.names}
    return found


def top_level_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (leaf.id for target in node.targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def texts(tree: ast.AST) -> Iterator[ast.Constant]:
    """String literals that are no docstrings."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node


def test_no_structure_is_named_outside_of_its_record_and_the_papers_analysis() -> None:
    named = re.compile(rf"\b({MAIN.name}|{HEAD_SIZE.name})\b")
    found = [
        f"{module_name(path)}:{text.lineno}: {text.value!r}"
        for path, tree in MODULES.items()
        if path not in (RECORDS, PAPER)
        for text in texts(tree)
        if named.search(text.value)
    ]
    assert found == []


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    names = {module_name(path) for path in MODULES}
    arrows = {
        module_name(path): {
            target
            for module, name in imports(tree)
            if (target := f"{module}.{name}" if f"{module}.{name}" in names else module) in names
        }
        for path, tree in MODULES.items()
    }
    without = dict(arrows)
    while free := [name for name, targets in without.items() if not targets & without.keys() - {name}]:
        for name in free:
            del without[name]
    assert without == {}


def test_no_import_hides_behind_type_checking() -> None:
    assert [module_name(path) for path, tree in MODULES.items() if ("typing", "TYPE_CHECKING") in imports(tree)] == []


def test_modules_import_names_from_where_they_are_defined() -> None:
    """Names from a package's lazy front would be hidden from the import contracts."""
    packages = {module_name(stub): exported(stub) for stub in STUBS}
    roundabout = [
        f"{module_name(path)}: from {module} import {name}"
        for path, tree in MODULES.items()
        for module, name in imports(tree)
        if name in packages.get(module, {})
        and not (PACKAGE / module.removeprefix("hypodask").strip(".").replace(".", "/") / f"{name}.py").exists()
        and not (PACKAGE / module.removeprefix("hypodask").strip(".").replace(".", "/") / name).is_dir()
    ]
    assert roundabout == []


@pytest.mark.parametrize("stub", sorted(STUBS), ids=module_name)
def test_every_package_lists_what_it_offers(stub: Path) -> None:
    package = import_module(module_name(stub))
    for name, module in exported(stub).items():
        assert getattr(package, name) is getattr(import_module(module), name)
        assert getattr(package, name).__doc__
    assert set(package.__all__) >= set(exported(stub))
    submodules = {path.stem for path in stub.parent.glob("*.py")}
    clashing = {name for name, module in exported(stub).items() if name in submodules and module != module_name(stub)}
    assert clashing == set(), "a module has the name of what it defines"


def test_every_package_has_a_list_of_what_it_offers() -> None:
    packages = {path.parent for path in MODULES if path.name == "__init__.py"}
    assert packages == {stub.parent for stub in STUBS}


def test_names_without_underscore_are_used_by_another_module() -> None:
    used: dict[str, set[str]] = defaultdict(set)
    others = [
        path for folder in ("recipes", "benchmarks", "docs", "examples") for path in (ROOT / folder).rglob("*.py")
    ]
    trees = {**MODULES, **{path: ast.parse(path.read_text(encoding="utf-8")) for path in others}}
    for path, tree in trees.items():
        for _, name in imports(tree):
            used[name].add(module_name(path))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                used[node.attr].add(module_name(path))
    for stub in STUBS:
        for name in exported(stub):
            used[name].add("a stub")
    lonely = [
        f"{module_name(path)}.{name}"
        for path, tree in MODULES.items()
        for name in top_level_names(tree)
        if not name.startswith("_") and not used[name] - {module_name(path)} and not is_met_by_users(name, path, tree)
    ]
    assert lonely == []


def is_met_by_users(name: str, path: Path, tree: ast.Module) -> bool:
    """Whether it is a type of a signature or a field, an error to catch, a command, or explained in the pages."""
    hints: list[ast.AST] = [function.returns for function in functions(tree) if function.returns]
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            hints.append(node.annotation)
        elif isinstance(node, ast.ClassDef):
            hints += node.bases
    hints += [node.value for node in tree.body if isinstance(node, ast.Assign)]
    named = {word for hint in hints for word in re.findall(r"\w+", ast.unparse(hint))}
    is_type = re.fullmatch(r"([A-Z][a-z0-9]+)+", name) and name in named
    where = path.relative_to(PACKAGE).as_posix()
    return bool(is_type) or where in ("core/errors.py", "cli.py", "_moved.py") or f"`{name}`" in PAGES


def test_functions_are_short() -> None:
    long = []
    for path, tree in MODULES.items():
        for function in functions(tree):
            lines = (function.end_lineno or 0) - function.lineno + 1
            if ast.get_docstring(function) is not None:
                lines -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
            if lines > LONGEST_FUNCTION:
                long.append(f"{module_name(path)}.{function.name}: {lines} lines")
    assert long == []


def test_public_functions_take_few_parameters() -> None:
    many, allowed = [], OF_COMMANDS | OF_PUBLISHED_SCRIPTS
    for path, tree in MODULES.items():
        for function in functions(tree):
            arguments = function.args
            names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            if count > MOST_PARAMETERS and not function.name.startswith("_") and function.name not in allowed:
                many.append(f"{module_name(path)}.{function.name}: {count}")
    assert many == []


def test_every_module_says_what_it_is_for() -> None:
    assert [module_name(path) for path, tree in MODULES.items() if not ast.get_docstring(tree)] == []


def test_what_is_offered_is_documented_with_its_parameters() -> None:
    """Every parameter of a function in ``hypodask.__all__`` is explained in its docstring."""
    silent = []
    for name in hypodask.__all__:
        value = getattr(hypodask, name)
        if inspect.isfunction(value):
            named = set(re.findall(r"^ {0,4}(\w[\w, ]*?)(?: : .*)?$", inspect.getdoc(value) or "", re.MULTILINE))
            told = {word.strip() for line in named for word in line.split(",")}
            kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
            asked = [p.name for p in inspect.signature(value).parameters.values() if p.kind not in kinds]
            silent += [f"{name}({parameter})" for parameter in asked if parameter not in told]
    assert silent == []


def test_recipes_and_validation_stay_out_of_the_wheel() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert configuration["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["hypodask"]
    assert not (PACKAGE / "recipes").exists()
    outside = {name.partition(".")[0] for tree in MODULES.values() for name, _ in imports(tree)}
    assert not outside & {"recipes", "benchmarks", "tests"}
