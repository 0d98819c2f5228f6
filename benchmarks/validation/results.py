"""Write the figures that a validation program measured to ``docs/results/``, where the pages take them from.

One file holds what one call of one program measured. The next recorded call replaces the file, and
``python docs/write_figures.py`` then renews every page that shows one of its figures.
"""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from numbers import Real
from pathlib import Path

import hypodask
from hypodask.networks.weights import resolve_model

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"

SHIPPED = ("commissures", "hypothalamus", "icv", "icv-border")
"""Networks that a whole run of hypodask uses."""

UNITS = {
    "percent": "%",
    "points": "percentage points",
    "mm": "mm",
    "mm3": "mm3",
    "ml": "ml",
    "deg": "degrees",
    "seconds": "s",
    "mb": "MB",
}
"""Units by the part of a value's name that states them, as in ``ac_error_mm_median``."""

SIGNIFICANT_DIGITS = 6


def add_record_option(parser: ArgumentParser) -> None:
    """Add ``--record``, without which a program leaves ``docs/results/`` alone."""
    parser.add_argument(
        "--record", action="store_true", help="write the figures to docs/results, where the pages take them from"
    )


def write_results(
    name: str,
    values: Mapping[str, float],
    *,
    what: str,
    data: str,
    networks: Iterable[str] = SHIPPED,
    folder: Path = RESULTS,
) -> Path:
    """Write the figures of one call of a program.

    Parameters
    ----------
    name
        Name of the file without suffix: that of the program, or of its part. Pages refer to a figure as ``name.key``.
    values
        Figures by key, a Python identifier. Its last word that is in :data:`UNITS` states the unit; a figure without
        one is a ratio or a count.
    what
        What was measured, in one sentence.
    data
        What it was measured on.
    networks
        Shipped networks that took part.
    folder
        Where to write.

    Returns
    -------
    Path
        The file: what was measured, the command, the data, the date, the version of hypodask, version and sha256 of
        every network, and each value with its unit.

    Raises
    ------
    ValueError
        If a key is no identifier, or a value is not a finite number.
    """
    if wrong := [key for key, value in values.items() if not key.isidentifier() or not _is_finite(value)]:
        raise ValueError(f"{name}: identifiers with finite numbers are needed, not {', '.join(wrong)}")
    record = {
        "what": what,
        "command": _command(),
        "data": data,
        "date": datetime.now(UTC).date().isoformat(),
        "provenance": f"measured with hypodask {hypodask.__version__}",
        "networks": {network: _version(network) for network in networks},
        "values": {key: {"value": _rounded(value), "unit": _unit_of(key)} for key, value in values.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(_as_text(record), encoding="utf-8")
    return path


def _as_text(record: Mapping[str, object]) -> str:
    """JSON with one line for each value, so that a change of one figure is a change of one line."""
    values = dict(record)["values"]
    assert isinstance(values, dict)
    head = json.dumps({**record, "values": {}}, indent=1, ensure_ascii=False)
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    return head.replace('"values": {}', f'"values": {{\n{lines}\n }}') + "\n"


def _unit_of(key: str) -> str:
    """The unit that a key states; empty for a ratio or a count."""
    return next((UNITS[word] for word in reversed(key.split("_")) if word in UNITS), "")


def _rounded(value: float) -> float | int:
    return int(value) if float(value).is_integer() and abs(value) >= 1 else float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and abs(float(value)) < float("inf")


def _version(network: str) -> dict[str, str]:
    card = json.loads(resolve_model(network).with_suffix(".json").read_text(encoding="utf-8"))
    return {"version": card["version"], "sha256": card["sha256"]}


def _command() -> str:
    """The call of this program; of a path only its last part is told, which names no machine."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {module.name}" if module else Path(sys.argv[0]).name
    return " ".join([program, *(Path(word).name if "/" in word else word for word in sys.argv[1:])])
