"""A finished run hands its learners on, through the command line."""

from __future__ import annotations

import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from sleeplm import cli
from sleeplm.bench.arms import build_arm
from sleeplm.bench.handover import export, history_of, read_learner, sleep_of
from sleeplm.bench.material import prepare
from sleeplm.bench.nights import today
from sleeplm.core.errors import CheckpointError, ConfigError
from sleeplm.core.tree import differing
from sleeplm.memory.slots import open_slot
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.learner import learner
from sleeplm.methods.schedule import ScheduleConfig
from sleeplm.models.graft import graft
from sleeplm.models.transformer import Model
from sleeplm.pretrained.hf_export import base_config
from sleeplm.pretrained.learner_folder import import_memories, load_base, load_learner
from sleeplm.pretrained.memories import open_experts
from sleeplm.pretrained.memory_files import read_memories
from sleeplm.pretrained.receive import put_memories

LIFE = f"{pathlib.Path(__file__).with_name('tiny_life.py')}:brief"
SETTINGS = ("--config.seeds=2", '--config.arms=["wake_only","sleep"]')


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A finished run: two learners side by side, two days with a night after each."""
    place = tmp_path_factory.mktemp("handover")
    cache = f"--config.cache={place / 'cache'}"
    arguments = ["run", LIFE, "--workdir", str(place / "run"), "--quiet", cache, *SETTINGS]
    assert cli.main(arguments) == 0
    return place / "run"


@pytest.fixture(scope="module")
def handed(ran):
    """What the second learner of the run left, exported whole."""
    out = ran.parent / "second"
    assert cli.main(["export", str(ran), "--out", str(out), "--learner", "1"]) == 0
    return out


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert cli.main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.slow
def test_the_learner_that_was_named_is_there_again_and_can_live_on(ran, handed):
    lived = read_learner(ran, learner=1)
    memories = read_memories(handed)
    model = Model(memories.config)
    reborn = learner(model, sleep_of(memories))
    key = jax.random.key(9)
    state = reborn.init(graft(model, load_base(handed, memories), key), key)
    born = jax.eval_shape(lambda: state)
    state = put_memories(model, state, memories)
    assert jax.eval_shape(lambda: state) == born  # days and nights of a newborn run on it
    for name in ("params", "slots", "cues", "counters"):
        assert differing(getattr(state, name), getattr(lived.state, name)) == [], name
    assert state.slots["slow"].active.tolist() == [True, True, False, False]
    first = read_learner(ran, learner=0)
    assert differing(first.state.params, state.params)


@pytest.mark.slow
def test_the_card_names_nights_days_and_the_run(ran, handed):
    card = json.loads((handed / "memories.json").read_text())
    slots = [(one["night"], one["slot"], one["nights"], one["days"]) for one in card["nights"]]
    assert slots == [(0, 0, [0], [0]), (1, 1, [1], [1])]
    results = json.loads((ran / "results.json").read_text())
    origin = card["origin"]
    assert (origin["arm"], origin["learner"], origin["seed"]) == ("sleep", 1, 1)
    assert origin["run"] == results["digest"] and origin["world"] == "biographies"
    assert origin["world_digest"] == results["world"]["digests"][1]


@pytest.mark.slow
def test_transformers_loads_the_base_and_its_tokenizer(ran, handed):
    import torch
    import transformers

    lived = read_learner(ran, learner=1)
    material = prepare(lived.config)
    text = material.curriculum.pretrain[0].text
    tokens = transformers.AutoTokenizer.from_pretrained(handed)(text, return_tensors="np").input_ids
    assert tokens[0].tolist() == [1, *material.tokenizer.encode(text)]
    file = transformers.AutoModelForCausalLM.from_pretrained(handed)
    with torch.no_grad():
        theirs = file(torch.from_numpy(np.asarray(tokens))).logits.numpy()
    model = Model(base_config(lived.config.model))
    params = load_base(handed, read_memories(handed))
    variables = {"params": params, "slots": model.init_slots()}
    said = jax.jit(model.logits)(variables, tokens.astype(np.int32))
    np.testing.assert_allclose(theirs, said, atol=1e-4)


@pytest.mark.slow
def test_a_night_goes_alone_and_into_another_learner(ran, handed, capsys):
    night, out = ran.parent / "night", ran.parent / "newborn"
    assert (
        cli.main(["export", str(ran), "--learner", "1", "--night", "1", "--out", str(night)]) == 0
    )
    assert not (night / "config.json").exists()
    arguments = ["import-memories", str(night), "--base", str(handed), "--out", str(out)]
    capsys.readouterr()
    assert cli.main(arguments) == 0
    said = capsys.readouterr()
    assert "night 0: slow, slot 0, days 1" in said.out
    assert "warning: night 1 was slept in the presence of nights 0" in said.err
    _, variables = load_learner(out)
    assert variables["slots"]["slow"].active.tolist() == [True, False, False, False]
    assert "is there already" in refused(capsys, "import-memories", str(night), "--into", str(out))
    # The other learner of the run has a backbone of its own.
    other = ran.parent / "other"
    assert cli.main(["export", str(ran), "--out", str(other)]) == 0
    line = refused(capsys, "import-memories", str(night), "--into", str(other))
    assert "belongs to base" in line


def night(rolled_back, day) -> dict:
    return {"event": "seed_end", "sender": "fast", "day": day, "rolled_back": rolled_back}


def merge(failed, kept, freed) -> dict:
    """Experts are named by the nights that opened them."""
    return {"event": "merge_end", "sender": "fast"} | {
        "merge_failed": failed, "kept": kept, "freed": freed
    }  # fmt: skip


def test_the_history_of_slots_follows_good_nights_and_merged_experts(brief):
    arm = build_arm("sleep", brief.config(), classes=0)
    lines = [
        night([0.0, 0.0], 0),
        night([1.0, 0.0], 1),  # the first learner lost this one
        night([0.0, None], 2),  # the second was awake
        night([0.0, 0.0], 3),
        merge([0.0, 1.0], [1.0, 0.0], [2.0, 1.0]),
        night([0.0, 0.0], 4),
    ]
    assert history_of(lines, arm, 0) == {
        ("slow", 0): {"nights": [0], "days": [0]},
        ("slow", 1): {"nights": [1, 2], "days": [2, 3]},
        ("slow", 3): {"nights": [3], "days": [4]},
    }
    second = history_of(lines, arm, 1)
    assert [held["days"] for held in second.values()] == [[0], [1], [3], [4]]
    pool = build_arm("equal_capacity_moe", brief.config(), classes=0)
    assert history_of(lines, pool, 1) == {
        ("slow", 0): {"nights": [0, 1, 2, 3], "days": [0, 1, 3, 4]}
    }


def test_a_slower_level_hands_on_the_days_that_its_own_experts_hold(tiny):
    """The ledger, after the nights themselves, has the same names."""
    levels = [
        tiny.level("fast", kind="graft", period=1, night=4),
        tiny.level("mid", kind="graft", slots=3, top_k=3, night=8),
        tiny.level("slow", slots=3, top_k=3),
    ]
    sleep = tiny.config(updates=0, alpha=1.0, lam=0.0)
    made, state = tiny.learner(tiny.model(levels), sleep)
    lines, batch, key = [], tiny.rows(sleep), jax.random.key(0)
    for day in range(5):
        for rest in made.rests[: 1 + day % 2]:
            for step in (rest.begin, rest.end):
                state, metrics = today(step)(state, batch, key)
            lost = [float(metrics["rolled_back"][0])]
            lines.append(
                {"event": "seed_end", "sender": rest.sender, "day": day, "rolled_back": lost}
            )
    arm = types.SimpleNamespace(learner=made, sleep=sleep)
    found = history_of(lines, arm, 0)
    open_slots = {
        (level, int(since))
        for level in ("mid", "slow")
        for since in state.slots[level].since[state.slots[level].active]
    }
    assert found.keys() == open_slots
    assert {key: held["days"] for key, held in found.items()} == {
        ("mid", 4): [4],
        ("slow", 0): [0, 1],
        ("slow", 2): [2, 3],
    }
    joined = {
        "event": "merge_end",
        "sender": "mid",
        "merge_failed": [0.0],
        "kept": [0.0],
        "freed": [2.0],
    }
    assert history_of([*lines, joined], arm, 0)["slow", 0]["days"] == [0, 1, 2, 3]


def test_experts_that_dreams_have_of_their_own_are_of_the_night_that_they_followed(brief):
    config = brief.config(dream=DreamConfig(into="new"), schedule=ScheduleConfig(when="day_end"))
    arm = build_arm("dream", config, classes=0)
    lines = [night([0.0], 0), {"event": "dream_end", "day": 0, "absorbed": [1.0]}, night([0.0], 1)]
    # Slots 0 and 1 are open since night 0, slot 2 since night 1: what is looked up is the night.
    table = open_slot(open_slot(arm.model.init_slots()["slow"], 0, 0), 1, 0)
    table = open_slot(table, 2, 1)
    params = arm.model.init(jax.random.key(0))
    state = arm.learner.init(params, jax.random.key(0))
    state = state.replace(slots={**state.slots, "slow": table})
    found = open_experts(arm.model, state, history_of(lines, arm, 0), {})
    assert [(one.slot, one.nights, one.days) for one in found] == [
        (0, (0,), (0,)),
        (1, (0,), (0,)),
        (2, (1,), (1,)),
    ]


@pytest.mark.slow
def test_arms_without_nights_hand_on_what_they_have(ran):
    memories = export(ran, ran.parent / "awake", arm="wake_only")
    assert memories.nights == () and "fast" in memories.parts["levels"]


@pytest.mark.slow
def test_a_base_that_fits_into_a_narrower_type_takes_its_memories_along(ran, tmp_path, monkeypatch):
    """Every number is read again as it was, so that it is the same base."""
    lived = read_learner(ran)

    def fits(params):
        """Its backbone rounded, as if it had been published so."""
        return jax.tree.map(lambda x: x.astype("bfloat16").astype(x.dtype), params)

    lived.state = lived.state.replace(params=fits(lived.state.params))
    monkeypatch.setattr("sleeplm.bench.handover.read_learner", lambda *args, **settings: lived)
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    memories = export(ran, wide)
    assert export(ran, narrow, dtype="bfloat16").base == memories.base
    tensors = [load_file(folder / "model.safetensors") for folder in (wide, narrow)]
    assert {x.dtype.name for x in tensors[1].values()} == {"bfloat16"}
    assert all(np.array_equal(x, tensors[1][name]) for name, x in tensors[0].items())
    for base in (wide, narrow):
        out, _ = import_memories(wide, base=base, out=tmp_path / f"on_{base.name}")
        _, found = load_learner(out)
        assert differing(found["params"], lived.state.params) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ({"world": "facts:gone.jsonl", "general": "gone.txt"}, "gone.jsonl"),
        ({"world": "passages:gone.json"}, "gone.json"),
        ({"backbone": "gone/model"}, "gone/model"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_memories_are_handed_on_where_what_was_read_is_gone(
    ran, handed, capsys, tmp_path, gone, missing
):
    moved, out = tmp_path / "moved", tmp_path / "out"
    shutil.copytree(ran, moved)
    results = json.loads((moved / "results.json").read_text())
    results["config"] |= gone
    (moved / "results.json").write_text(json.dumps(results))
    learner = ("export", str(moved), "--learner", "1", "--out", str(out))
    # A base has a tokenizer with it, which comes from there.
    assert missing in refused(capsys, *learner) and not out.exists()
    assert cli.main([*learner, "--only", "memories"]) == 0
    assert read_memories(out).base == read_memories(handed).base
    # The file of numbers is named by its content.
    ours, theirs = ([p.name for p in place.glob("memories-*")] for place in (out, handed))
    assert len(ours) == 1 and ours == theirs


@pytest.mark.slow
def test_what_cannot_be_exported_is_one_line(ran, capsys, tmp_path):
    out = ("--out", str(tmp_path / "out"))
    assert "learner = 2" in refused(capsys, "export", str(ran), *out, "--learner", "2")
    assert "arm = 'slep'" in refused(capsys, "export", str(ran), *out, "--arm", "slep")
    assert "there are 0, 1" in refused(capsys, "export", str(ran), *out, "--night", "5")
    line = refused(capsys, "export", str(ran), *out, "--dtype", "bfloat16")
    assert "dtype = 'bfloat16': rounds model." in line
    line = refused(capsys, "export", str(ran), *out, "--dtype", "float32", "--night", "0")
    assert "dtype = 'float32': is the type of the base, which is left out" in line
    assert "must be one of" in refused(capsys, "export", str(ran), *out, "--dtype", "int8")
    assert "has the run finished" in refused(capsys, "export", str(tmp_path), *out)
    assert not (tmp_path / "out").exists()
    moved = tmp_path / "moved"
    shutil.copytree(ran, moved)
    shutil.rmtree(moved / "checkpoints" / "sleep")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_learner(moved)
    results = json.loads((moved / "results.json").read_text())
    results["world"]["digests"][0] = "0"
    (moved / "results.json").write_text(json.dumps(results))
    with pytest.raises(ConfigError, match="its texts are not those"):
        export(moved, tmp_path / "out", arm="wake_only")
    assert not (tmp_path / "out").exists()
