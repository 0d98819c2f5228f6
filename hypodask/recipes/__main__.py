"""Run one recipe from the command line."""

import argparse
import logging
from pathlib import Path

from hypodask.recipes import __doc__ as usage
from hypodask.recipes.commissures import train_commissures
from hypodask.recipes.hypothalamus import train_hypothalamus
from hypodask.recipes.icv import train_icv
from hypodask.recipes.template import outline_template


def main() -> None:
    """Run one recipe from the command line."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["hypothalamus", "icv", "commissures", "template"])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--leave-out", nargs="*", default=())
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.network == "template":
        outline_template(options.data, options.work)
        return
    recipes = {"hypothalamus": train_hypothalamus, "icv": train_icv, "commissures": train_commissures}
    recipes[options.network](options.data, options.work, steps=options.steps, leave_out=tuple(options.leave_out))


if __name__ == "__main__":
    main()
