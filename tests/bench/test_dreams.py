"""The comparison of trials at once with a loop over trials."""

from __future__ import annotations

import re

from sleeplm.bench import dreams


def test_it_times_three_ways_and_counts_bytes(tiny, capsys, monkeypatch):
    monkeypatch.setattr(dreams, "_sized", lambda width: tiny.model().config)
    sizes = {"trials": 4, "length": 6, "rank": 1, "steps": 2, "rounds": 1}
    dreams.main([text for name, n in sizes.items() for text in (f"--{name}", str(n))])
    said = capsys.readouterr().out
    assert len(re.findall(r"\d s, [\d.]+ x; with compilation [\d.]+ s", said)) == 3
    kept, of_model = (
        int(re.search(pattern, said)[1].replace(",", ""))
        for pattern in (r"keeps ([\d,]+) bytes", r"model has ([\d,]+)")
    )
    assert 0 < kept < of_model
