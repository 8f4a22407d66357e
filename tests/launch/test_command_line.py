"""The command line of ``python -m launch``: what it does not know is put right in one line."""

from __future__ import annotations

import pytest

from launch.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["expand", "e.py", "--swep", "lr", "--out", "s"], "'--swep': unknown; did you mean --sw"),
        (["local", "s", "--job=2"], "'--job=2': unknown; did you mean --jobs?"),
        (["render", "slurm", "s", "--partion", "cpu"], "did you mean --partition?"),
        (["render", "slurm", "s", "--parti", "cpu"], "did you mean --partition?"),  # no short form
        (
            ["render", "jobset", "s", "--image=i", "--storage=gs://b", "--queu=q"],
            "did you mean --queue?",
        ),
        (["submit", "slurm", "s", "--now"], "see python -m launch submit slurm --help"),
        (["status", "s", "more"], "'more': unknown; see python -m launch status --help"),
    ],
)
def test_an_argument_that_a_command_does_not_know(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse leaves this way
        status = stop.code
    told = capsys.readouterr().err
    assert status == 2 and len(told.splitlines()) == 1
    assert said in told
    assert list(tmp_path.iterdir()) == []
