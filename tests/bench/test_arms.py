import pytest, time
from sleeplm.bench.arms import ARMS


@pytest.mark.parametrize("name", [n for n in ARMS if n != "inca"])
def test_x(brief, name, tmp_path):
    t = time.process_time()
    b = brief.bench(brief.config())
    t1 = time.process_time()
    l = brief.live(b, name, tmp_path / "r")
    t2 = time.process_time()
    import json

    T = [json.loads(x) for x in open(tmp_path / "r" / "timings.jsonl")]
    print(
        name,
        t1 - t,
        t2 - t1,
        [(x["label"][-14:], round(x["seconds"], 1)) for x in T if x["seconds"] > 0.3],
    )
