"""`python -m corsa_plugins.testbed build --out DIR`: rebuild the testbed from nothing, and check it."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from corsa_plugins.testbed.build import build_testbed, read_testbed
from corsa_plugins.testbed.checks import knowledge, value_reach
from corsa_plugins.testbed.recipe import TestbedRecipe, reduced_recipe

logger = logging.getLogger("corsa_plugins.testbed")


def main(argv: Sequence[str] | None = None) -> int:
    """Build and check, or check only. Returns 1 if the testbed falls short of what is promised of it."""
    parser = argparse.ArgumentParser(prog="python -m corsa_plugins.testbed", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="train a testbed into a folder, then check it")
    build.add_argument("--out", type=Path, required=True, help="folder to write to")
    build.add_argument("--reduced", action="store_true", help="the small world of the tests")
    check = commands.add_parser("check", help="check a testbed folder")
    check.add_argument("folder", type=Path)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.command == "build":
        testbed = build_testbed(reduced_recipe() if args.reduced else TestbedRecipe(), args.out)
    else:
        testbed = read_testbed(args.folder)
    shares = knowledge(testbed)
    for form, share in shares.items():
        logger.info("facts known in form %-13s %6.2f %%", form, 100 * share)
    reach = value_reach(testbed, n=min(100, testbed.recipe.world.n_subjects))
    logger.info("requests reached by a value vector  %6.2f %%", 100 * reach.reached)
    logger.info("their questions answered with it    %6.2f %%", 100 * reach.question_answers)
    return 0 if min(shares.values()) >= 0.99 and reach.reached >= 0.9 else 1


if __name__ == "__main__":
    raise SystemExit(main())
