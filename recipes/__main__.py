"""Run one recipe from the command line."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes import __doc__ as usage
from recipes.border import train_border
from recipes.commissures import train_commissures
from recipes.hypothalamus import train_hypothalamus
from recipes.icv import train_icv
from recipes.template import segment_template


def main() -> None:
    """Run one recipe from the command line."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=["hypothalamus", "icv", "border", "commissures", "template"])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--leave-out", nargs="*", default=())
    parser.add_argument("--initial", type=Path, help="weights to go on from (icv only)")
    parser.add_argument("--scheduler", help="address of a running Dask scheduler (hypothalamus only)")
    options = parser.parse_args()
    if options.initial and options.recipe != "icv":
        parser.error(f"--initial is for icv, not for {options.recipe}: leave it out to learn from scratch")
    if options.scheduler and options.recipe != "hypothalamus":
        parser.error(f"--scheduler is for hypothalamus, not for {options.recipe}: leave it out to run here")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.recipe == "template":
        segment_template(options.data, options.work)
        return
    recipes: dict[str, Callable[..., None]] = {
        "hypothalamus": train_hypothalamus,
        "icv": train_icv,
        "border": train_border,
        "commissures": train_commissures,
    }
    more: dict[str, Any] = {"initial": options.initial} if options.initial else {}
    more |= {"client": options.scheduler} if options.scheduler else {}
    train = recipes[options.recipe]
    train(options.data, options.work, steps=options.steps, leave_out=tuple(options.leave_out), **more)


if __name__ == "__main__":
    main()
