"""Ways that are timed in turns."""

from __future__ import annotations

from sleeplm.bench import turns


def test_ways_take_turns_and_the_first_turn_is_told_apart(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock[0])

    def way(name, seconds):
        durations = iter(seconds)

        def run():
            calls.append(name)
            clock[0] += next(durations)

        return run

    found = turns.in_turns({"a": way("a", [100, 1, 3, 2]), "b": way("b", [50, 4, 4, 9])}, 3)
    assert calls == ["a", "b"] * 4
    assert {name: (times.first, times.median) for name, times in found.items()} == {
        "a": (100.0, 2.0),
        "b": (50.0, 4.0),
    }
