"""``sleeplm plan``."""

from __future__ import annotations

import argparse
import os
import pathlib
from typing import Any


def add_to(commands: Any) -> None:
    """Adds the command to the command line."""
    plan = commands.add_parser(
        "plan",
        help="what an experiment's programs need of a TPU pod, without having one",
        description="Compiles wake, seeding, decode and dream for a topology ahead of time and "
        "prints memory, FLOPs, collectives and a roofline lower bound. See docs/plan.md.",
        allow_abbrev=False,
    )
    plan.add_argument("config", metavar="CONFIG", help="Python file whose get_config() is a plan")
    plan.add_argument("--topology", required=True, metavar="CHIP:GRID", help="such as v5e:16x16")
    plan.add_argument("--json", metavar="FILE", help="write everything that was found there too")
    plan.add_argument(
        "--fit", action="store_true", help="search mesh, rows and recomputation for what fits"
    )
    plan.add_argument(
        "--fast", action="store_true", help="compile faster, to programs that need more memory"
    )
    plan.add_argument("--debug", action="store_true", help="show tracebacks of errors")


def carry_out(options: argparse.Namespace, overrides: list[str]) -> int:
    """Plans, prints, and says with the exit status whether everything fits: 0, or 1."""
    # Before jax looks for devices: a plan needs none, and libtpu would look for a TPU.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from sleeplm.core.errors import ConfigError
    from sleeplm.plan.compiling import all_fit, plan
    from sleeplm.plan.config import PlanConfig
    from sleeplm.plan.fit import fit
    from sleeplm.plan.report import as_json, as_text
    from sleeplm.plan.topology import devices
    from sleeplm.runtime.config import check, load_config

    config = load_config(options.config, overrides)
    if not isinstance(config, PlanConfig):
        remedy = f"get_config() must return a PlanConfig, not {type(config).__name__}"
        raise ConfigError("config", options.config, remedy)
    check(config)
    chips = len(devices(options.topology))
    if options.fit:
        config, tried = fit(
            config, chips, lambda c: all_fit(c, options.topology, fast=options.fast)
        )
        print("\n".join(tried), end="\n\n")
    made = plan(config, options.topology, fast=options.fast)
    if options.json:
        pathlib.Path(options.json).expanduser().write_text(as_json(made))
    print(as_text(made))
    return 0 if made.fits else 1
