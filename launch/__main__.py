"""The command ``python -m launch``: sweeps, from an experiment file to one report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from launch.trials import TRIALS
from sleeplm.arguments import OneLineParser, command_of, unknown
from sleeplm.core.errors import ConfigError, SleepError

DESCRIPTION = """\
Many trials of one experiment: `expand` writes them down, `local` runs them here, `render` and
`submit` run them on a cluster, `status` says how far they are, `collect` puts results together.
"""

EXAMPLES = """\
examples:
  python -m launch expand experiments/retention.py --sweep lr --sweep seeds --out sweeps/lr
  python -m launch local sweeps/lr --jobs 2 --cores 1 --memory 4096
  python -m launch render jobset sweeps/lr --tpu v6e --image IMAGE --storage gs://BUCKET/lr
  python -m launch submit jobset sweeps/lr
  python -m launch status sweeps/lr
  python -m launch collect sweeps/lr
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main_parser = OneLineParser(
        prog="python -m launch",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = main_parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_expand(commands)
    _add_local(commands)
    _add_clusters(commands)
    _add_status(commands)
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


def _add_local(commands: Any) -> None:
    command = commands.add_parser(
        "local", help="run the trials on this machine", allow_abbrev=False
    )
    command.add_argument("sweep", metavar="DIR", help="a sweep directory")
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="trials at once")
    command.add_argument(
        "--processes", type=int, default=1, metavar="N", help="of each trial, as one job"
    )
    text = "of each process"
    command.add_argument("--cores", type=int, default=0, metavar="N", help=f"{text} (default: all)")
    command.add_argument("--memory", type=int, default=0, metavar="MIB", help=f"{text}, at most")
    command.add_argument(
        "--restarts",
        type=int,
        default=3,
        metavar="N",
        help="of a trial that is killed",
    )
    command.add_argument("--only", action="append", default=[], metavar="ID", help="these trials")


def _add_clusters(commands: Any) -> None:
    from launch import jobset, slurm

    backends: dict[str, Any] = {"jobset": jobset, "slurm": slurm}
    words = {"render": "write what a cluster needs; no cluster is needed", "submit": "hand it in"}
    for name, text in words.items():
        command = commands.add_parser(name, help=text, allow_abbrev=False)
        kinds = command.add_subparsers(dest="backend", metavar="BACKEND", required=True)
        for backend, module in backends.items():
            text = module.__doc__.splitlines()[0]
            kind = kinds.add_parser(backend, help=text, allow_abbrev=False)
            kind.add_argument("sweep", metavar="DIR", help="a sweep directory")
            if name == "render":
                module.add_arguments(kind)


def _add_status(commands: Any) -> None:
    command = commands.add_parser("status", help="where every trial is", allow_abbrev=False)
    command.add_argument("sweep", metavar="DIR", help="a sweep directory")
    command = commands.add_parser(
        "collect", help="one table and one report over finished trials", allow_abbrev=False
    )
    command.add_argument("sweep", metavar="DIR", help="a sweep directory")
    command.add_argument("--out", default="", metavar="DIR", help="where to (default: DIR/report)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
      Exit status: 0 done; 1 a trial has failed; 2 something has to be mended (one line says what);
      130 interrupted.
    """
    options, rest = parser().parse_known_args(arguments)
    try:
        if rest:
            names = [options.command, *filter(None, [getattr(options, "backend", None)])]
            raise ConfigError("argument", rest[0], unknown(rest[0], command_of(parser(), *names)))
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
    from launch.trials import check_sweep, write_trials

    trials = expand(options.experiment, options.sweep, quick=options.quick)
    check_sweep(options.out, trials)
    write_trials(options.out, trials)
    print(f"{len(trials)} trials: {os.path.join(options.out, TRIALS)}")
    return 0


def _local(options: argparse.Namespace) -> int:
    from launch.local import Limits, Local

    limits = Limits(
        options.jobs, options.cores, options.memory, options.restarts, options.processes
    )
    return Local(options.sweep, limits, options.only).run()


def _render(options: argparse.Namespace) -> int:
    from launch import jobset, slurm

    values = {k: v for k, v in vars(options).items() if k not in ("command", "backend", "sweep")}
    if options.backend == "slurm":
        print(slurm.render(options.sweep, slurm.Array(**values)))
        if options.processes > 1:
            told = f"{options.processes} processes a trial: the sizes of its mesh have to make"
            print(f"launch: {told} as many devices as they have together", file=sys.stderr)
        return 0
    settings = jobset.JobSets(**values)
    files = jobset.render(options.sweep, settings)
    print(f"{len(files)} manifests: {os.path.join(options.sweep, jobset.FOLDER)}")
    found = settings.check()
    hosts = settings.slices * found.hosts
    if hosts > 1:
        devices = hosts * found.devices
        told = f"{hosts} hosts a trial: the sizes of its mesh have to make {devices} devices"
        print(f"launch: {told}", file=sys.stderr)
    return 0


def _submit(options: argparse.Namespace) -> int:
    from launch import jobset, slurm

    {"jobset": jobset.submit, "slurm": slurm.submit}[options.backend](options.sweep)
    return 0


def _status(options: argparse.Namespace) -> int:
    from launch.collect import show_status, status

    print(show_status(status(options.sweep)))
    return 0


def _collect(options: argparse.Namespace) -> int:
    from launch.collect import TABLE, collect
    from sleeplm.bench.report import PAGE

    rows, missing = collect(options.sweep, options.out)
    out = options.out or os.path.join(options.sweep, "report")
    print(f"{len(rows)} rows: {os.path.join(out, TABLE)}; report: {os.path.join(out, PAGE)}")
    if missing:
        print(f"launch: {missing} trials are not finished and left out", file=sys.stderr)
    return 0


_COMMANDS = {
    "expand": _expand,
    "local": _local,
    "render": _render,
    "submit": _submit,
    "status": _status,
    "collect": _collect,
}


if __name__ == "__main__":
    sys.exit(main())
