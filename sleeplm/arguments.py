"""The arguments of the ``sleeplm`` command."""

from __future__ import annotations

import argparse
import difflib
from typing import Any, NoReturn

from sleeplm.plan import command as planning

DESCRIPTION = """\
sleeplm: language models that keep learning after they ship.

Awake, a model absorbs a stream into fast memory levels; asleep, it moves what they hold into
fresh experts of slower levels. `run` carries out an experiment file, `report` shows what came out,
`export` hands a learner on, `import-memories` puts memories onto the base they belong to, and
`plan` says what a TPU pod would have to have.
"""

EXAMPLES = """\
examples:
  sleeplm run experiments/retention.py
  sleeplm run experiments/retention.py --config.world=biographies --config.days=6
  sleeplm run experiments/retention.py --workdir runs/mine --resume
  sleeplm run experiments/retention.py --workdir runs/pod --config.mesh.data=8 --distributed
  sleeplm report runs/mine
  sleeplm report runs/mine runs/other --out runs/both
  sleeplm report runs/mine --against wake_only
  sleeplm export runs/mine --out out/mine
  sleeplm export runs/mine --night 2 --out out/night
  sleeplm import-memories out/night --base out/mine --out out/other
  sleeplm plan experiments/plan_llama8b.py --topology v5e:4x4

An experiment file is Python with a function get_config() that returns the settings; every one of
them can be changed with --config.FIELD=VALUE, also nested: --config.sleep.updates=360 or
'--config.model.levels[0].width=128'. Ctrl-C saves and leaves; --resume goes on from there.
"""


SETTABLE = ("run", "plan")  # commands with an experiment file, whose settings can be changed


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def command_of(top: argparse.ArgumentParser, *names: str) -> argparse.ArgumentParser:
    """The parser of a command, or of a command of a command: ``("render", "slurm")``."""
    for name in names:
        (commands,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
        top = commands.choices[name]
    return top


def unknown(text: str, command: argparse.ArgumentParser, otherwise: str = "") -> str:
    """What to say about an argument that a command does not know.

    Args:
      otherwise: where no flag of the command looks like it; its help by default.
    """
    flags = command._option_string_actions
    if close := difflib.get_close_matches(text.partition("=")[0], flags, n=1):
        return f"unknown; did you mean {close[0]}?"
    return f"unknown; {otherwise or f'see {command.prog} --help'}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main_parser = OneLineParser(
        prog="sleeplm",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = main_parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run = commands.add_parser(
        "run",
        help="carry out an experiment file",
        description="Carries out an experiment and writes its report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    run.add_argument(
        "config", help="Python file with get_config(); FILE:NAME calls get_config(NAME)"
    )
    run.add_argument(
        "--workdir", help="where results and checkpoints go (default: runs/NAME-DATE-TIME)"
    )
    run.add_argument(
        "--resume", action="store_true", help="go on where a run in --workdir stopped, or start it"
    )
    run.add_argument(
        "--quick",
        action="store_true",
        help="a short version of the experiment, where the file has one: get_quick_config()",
    )
    run.add_argument(
        "--tensorboard",
        action="store_true",
        help="write metrics for TensorBoard too (pip install 'sleeplm[tensorboard]')",
    )
    run.add_argument("--quiet", action="store_true", help="no progress")
    run.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    _add_job(run)
    report = commands.add_parser(
        "report",
        help="write the report of finished runs and print it",
        description="Writes report.json, report.md, report.html and a picture of one run or of "
        "several together, and prints the report.",
        allow_abbrev=False,
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run directory")
    report.add_argument(
        "--out",
        metavar="DIR",
        help="where it goes (default: the run itself; of several, runs/report-DATE-TIME)",
    )
    report.add_argument(
        "--against",
        default="",
        metavar="ARM",
        help="the arm that others are compared with (default: sleep, or else the first)",
    )
    report.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    _add_export(commands)
    _add_import(commands)
    planning.add_to(commands)
    return main_parser


def _add_job(run: argparse.ArgumentParser) -> None:
    job = run.add_argument_group(
        "several processes",
        "The same command in every process of a job, see docs/scale.md. Where the cluster says\n"
        "who they are, --distributed is enough; elsewhere give the other three.",
    )
    job.add_argument(
        "--distributed", action="store_true", help="as the cluster says (TPU, Slurm, Open MPI)"
    )
    job.add_argument("--coordinator", metavar="HOST:PORT", help="of the first process")
    job.add_argument("--processes", metavar="N", type=int, help="how many there are")
    job.add_argument("--process", metavar="I", type=int, help="which one this is, from 0")


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write a learner of a finished run into a folder",
        description="Writes the backbone as a Hugging Face folder, and the memories that go onto "
        "it as safetensors with a card in JSON. See docs/export.md.",
        allow_abbrev=False,
    )
    export.add_argument("run", metavar="RUN", help="a run directory")
    export.add_argument("--out", metavar="DIR", required=True, help="a new folder")
    export.add_argument("--arm", help="which life (default: the first that has nights)")
    export.add_argument(
        "--learner", metavar="I", type=int, default=0, help="which of those side by side, from 0"
    )
    export.add_argument(
        "--night",
        metavar="N",
        type=int,
        action="append",
        help="only the expert of this night, from 0; may be repeated",
    )
    export.add_argument("--only", choices=("base", "memories"), help="leave the other out")
    export.add_argument(
        "--dtype", help="write the base in float32 or bfloat16 (rounded only with --only base)"
    )
    export.add_argument(
        "--without-cues", action="store_true", help="leave out the beginnings that nights tell from"
    )
    export.add_argument("--force", action="store_true", help="replace earlier memories in --out")
    export.add_argument("--debug", action="store_true", help="show tracebacks of errors")


def _add_import(commands: Any) -> None:
    take_in = commands.add_parser(
        "import-memories",
        help="put exported memories onto their base, or a night into another learner",
        description="Makes a folder with a learner out of exported memories and the base that "
        "they belong to; any other base is refused. See docs/export.md.",
        allow_abbrev=False,
    )
    take_in.add_argument("memories", metavar="DIR", help="exported memories, or single nights")
    onto = take_in.add_mutually_exclusive_group(required=True)
    onto.add_argument("--base", metavar="FOLDER", help="the Hugging Face folder they go onto")
    onto.add_argument("--into", metavar="FOLDER", help="a learner that gets single nights as well")
    take_in.add_argument(
        "--out", metavar="DIR", help="a new folder (default with --into: that one, in place)"
    )
    take_in.add_argument("--force", action="store_true", help="replace a learner in --out")
    take_in.add_argument("--debug", action="store_true", help="show tracebacks of errors")
