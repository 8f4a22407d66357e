"""The command ``python -m launch``: sweeps, from an experiment file to one report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from launch.trials import TRIALS
from sleeplm.core.errors import SleepError

DESCRIPTION = """\
Many trials of one experiment: `expand` writes them down, `local` runs them here, `render` and
`submit` run them on a cluster, `status` says how far they are, `collect` puts results together.
"""

EXAMPLES = """\
examples:
  python -m launch expand experiments/retention.py --sweep lr --sweep seeds --out sweeps/lr
  python -m launch local sweeps/lr --jobs 2 --cores 1 --memory 4096
  python -m launch status sweeps/lr
  python -m launch collect sweeps/lr
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main_parser = _Parser(
        prog="python -m launch",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = main_parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_expand(commands)
    return main_parser


def _add_expand(commands: Any) -> None:
    command = commands.add_parser(
        "expand", help="write down the trials of a sweep", allow_abbrev=False
    )
    command.add_argument("experiment", help="as for sleeplm run: FILE, or FILE:ARGUMENT")
    command.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME",
        help="sweep_NAME() of the file; several are crossed",
    )
    command.add_argument("--quick", action="store_true", help="the file's short version")
    command.add_argument("--out", required=True, metavar="DIR", help="the sweep directory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
      Exit status: 0 done; 1 a trial has failed; 2 something has to be mended (one line says what);
      130 interrupted.
    """
    options = parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except SleepError as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.filename or 'file'}: {error.strerror or error}")


def _complain(text: str) -> int:
    print(f"launch: {' '.join(text.split())}", file=sys.stderr)
    return 2


def _expand(options: argparse.Namespace) -> int:
    from launch.expand import expand
    from launch.trials import write_trials

    trials = expand(options.experiment, options.sweep, quick=options.quick)
    write_trials(options.out, trials)
    print(f"{len(trials)} trials: {os.path.join(options.out, TRIALS)}")
    return 0


_COMMANDS = {"expand": _expand}


if __name__ == "__main__":
    sys.exit(main())
