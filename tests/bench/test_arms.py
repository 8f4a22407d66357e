"""Every arm lives two days; what each may move, and what it may keep."""

from __future__ import annotations

import csv
import dataclasses
import functools
import re
import types

import jax
import numpy as np
import pytest

from sleeplm.bench import flops, lives
from sleeplm.bench.arms import ARMS, DREAMING, WITHOUT_LEVELS_NIGHTS, Arm, add_arm, build_arm
from sleeplm.bench.baselines import BaselineConfig
from sleeplm.bench.costs import replay_step
from sleeplm.bench.life import Life
from sleeplm.bench.lives import life_of
from sleeplm.bench.outcome import outcomes
from sleeplm.bench.report import summarize
from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.core.losses import reverse_kl
from sleeplm.memory.anchors import BASE, parts_of
from sleeplm.memory.levels import get_level
from sleeplm.methods.adapters import ADAPTERS
from sleeplm.methods.config import TeacherConfig, merging
from sleeplm.methods.ewc import EWC
from sleeplm.methods.gaussians import GAUSSIANS
from sleeplm.methods.learner import learner
from sleeplm.methods.objectives import seeding
from sleeplm.methods.schedule import ScheduleConfig
from sleeplm.models.transformer import Model
from sleeplm.runtime.config import check

#: Arms of nights and days; those that dream live in test_dream_life.py, and their control is
#: ``sleep`` with another number of updates. Two more are ``sleep_full`` with one other weight, and
#: two with the teachers of the paper, whose nights tests/methods/test_sleep.py sleeps.
ANOTHER_NUMBER = ("sleep_longer", "no_imitation", "no_semantic")
AS_WRITTEN = ("sleep_paper_v2", "sleep_paper_evening")
LIVES = [name for name in ARMS if name not in (*DREAMING, *ANOTHER_NUMBER, *AS_WRITTEN)]
SLEEPERS = [name for name in LIVES if name not in WITHOUT_LEVELS_NIGHTS]
#: Arms whose nights give the slow level one fresh expert each, and move nothing else in it.
EXPANDING = [name for name in SLEEPERS if not re.match("equal|fixed", name)]
FRUIT, BIRDS = ("apple", "plum"), ("crow", "owl", "wren")


def labels_in(folder) -> str:
    """A labelled world of two days in a folder."""
    days = {label: 1 + (label in BIRDS) for label in (*FRUIT, *BIRDS)}
    for file, texts in (("train.csv", ("I saw one", "one more")), ("test.csv", ("is it here",))):
        with (folder / file).open("w", newline="") as out:
            rows = csv.writer(out)
            rows.writerow(["text", "label", "day"])
            rows.writerows(
                [f"{text} {label[:2]}", label, day] for label, day in days.items() for text in texts
            )
    return f"labels:{folder}"


@pytest.fixture(scope="module")
def lived(brief, tmp_path_factory):
    """``name -> Lived``: the life of that arm, once for all tests."""

    def config_of(name: str):
        baselines = BaselineConfig(ewc_rows=16, lora_rank=2, slow_period=2)
        config = brief.config(baselines=baselines)
        if name != "inca":
            return config
        # Before labels, the whole atlas is read: more words of it have to be tokens.
        model = dataclasses.replace(config.model, vocab_size=1024)
        world = labels_in(tmp_path_factory.mktemp("labels"))
        return dataclasses.replace(config, world=world, model=model)

    @functools.cache
    def life(name: str):
        bench = brief.bench(config_of(name))
        return brief.live(bench, name, tmp_path_factory.mktemp(name) / "run")

    return life


def moved(life) -> set[str]:
    """Paths of the parameters that a life has moved: ``"blocks/levels/fast/norm/scale"``."""
    paths = tree.differing(life.newborn.params, life.state.params)
    return {"/".join(re.findall(r"'(\w+)'", path)) for path in paths}


def all_paths(life) -> set[str]:
    flat = jax.tree_util.tree_leaves_with_path(life.newborn.params)
    return {"/".join(re.findall(r"'(\w+)'", jax.tree_util.keystr(path))) for path, _ in flat}


# --- every arm -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", LIVES)
def test_every_arm_lives_two_days_and_can_be_reported(lived, name):
    life = lived(name)
    assert isinstance(life_of(life.bench, life.arm), Life)  # and not in a loop of its own
    kinds = {"cues", "own_cues", "wake", "exam", "seed", "seed_end"}
    assert {line["event"] for line in life.lines} <= kinds
    assert [line["day"] for line in life.of("exam", when="dusk")] == [0, 1]
    assert life.state.counters["step"].tolist() == [sum(life.bench.steps)] == [8]
    for line in life.of("exam"):
        assert np.isfinite([line["kl"], line["pretrain"], line["cluster"]]).all()
    for leaf in jax.tree.leaves(life.state.params):
        assert np.isfinite(leaf).all()
    results = outcomes(life.bench, life.run, {name: life.arm})
    (told,) = results["arms"][name]
    assert told["raw_text"] is (name in ("static_replay", "icl", "joint"))
    assert told["log"]["nights"] == int(life.state.counters["nights"][0])
    assert summarize(results)["arms"][name]["seeds"] == 1


def test_an_arm_for_labels_is_refused_elsewhere(brief):
    config = brief.config(arms=["wake_only"])
    with pytest.raises(ConfigError, match=r"arms = 'inca': needs a labelled world"):
        build_arm("inca", config, classes=0)


@pytest.mark.parametrize(("name", "weight"), [("no_imitation", "alpha"), ("no_semantic", "gamma")])
def test_two_arms_differ_from_all_parts_together_by_one_weight(brief, name, weight):
    full, other = (build_arm(arm, brief.config(), classes=0).sleep for arm in ("sleep_full", name))
    without = {"alpha": 1.0, "gamma": 0.0}[weight]
    assert getattr(full, weight) != without
    assert other == dataclasses.replace(full, **{weight: without})


@pytest.mark.parametrize(
    ("name", "night", "field"),
    [
        ("sleep_paper_v2", {"rows": 6}, "rows|group"),
        ("sleep_full", {"teachers": [TeacherConfig(imitate=False)]}, "alpha"),
        ("sleep_own_cues", {"own_cue_tokens": 13}, "own_cue_tokens"),
    ],
)
def test_an_arm_whose_own_night_does_not_suit_the_run_is_refused(brief, name, night, field):
    config = brief.config(sleep=night)
    assert build_arm("sleep", config, classes=0)
    with pytest.raises(ConfigError, match=rf"^{name}: sleep\.({field}) = "):
        build_arm(name, config, classes=0)


def test_a_longer_night_is_longer_by_what_dreams_cost_however_much_a_day_has_brought(brief):
    """Dreams are as many after a short day."""
    config = brief.config(schedule=ScheduleConfig(when="day_end"), night_facts=4)
    arm = build_arm("sleep_longer", config, classes=0)
    usual, more = config.sleep.updates, arm.sleep.updates - config.sleep.updates
    assert more > 0
    for share in (0.5, 1.0, 2.0):
        bench = types.SimpleNamespace(shares=[share])
        (found,) = lives._shares(bench, arm)  # type: ignore[arg-type]
        assert found * arm.sleep.updates == pytest.approx(share * usual + more)
    nothing = dataclasses.replace(config, sleep=dataclasses.replace(config.sleep, updates=0))
    with pytest.raises(ConfigError, match=r"sleep.updates = 0: sleep_longer has more updates"):
        build_arm("sleep_longer", nothing, classes=0)


def test_nights_without_updates_cannot_merge_experts(brief):
    config = brief.config(schedule=ScheduleConfig(when="day_end"), sleep={"pool": "merge_balanced"})
    assert build_arm("dream", config, classes=0)
    for name in ("dream_alone", "reset_only"):
        with pytest.raises(ConfigError, match=rf"sleep.pool = 'merge_balanced': {name} has nights"):
            build_arm(name, config, classes=0)


@pytest.mark.parametrize("own", [0, 2])
@pytest.mark.parametrize("name", ["static_replay", "sleep_longer", "dream_no_reward"])
def test_nights_that_are_longer_for_equal_operations_merge_as_sleep_does(brief, name, own):
    sleep = {"pool": "merge_oldest", "merge_updates": own}
    schedule = ScheduleConfig(when="day_end")
    config = brief.config(sleep=sleep, schedule=schedule, equal_flops=True)
    arm = build_arm(name, config, classes=0)
    assert arm.sleep.updates > config.sleep.updates == 4
    assert merging(arm.sleep).updates == merging(config.sleep).updates == (own or 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sleep", "equal_capacity_moe", "fixed_capacity_on_policy"])
def test_where_questions_go_is_asked_of_arms_whose_nights_open_experts_of_their_own(brief, name):
    bench = brief.bench(brief.config(probes=True))
    life = life_of(bench, brief.arm(bench, name))
    assert (life.probe is not None) == (name == "sleep")


# --- arms that sleep -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPANDING)
def test_nights_move_one_fresh_expert_each_and_nothing_else_of_the_slow_level(lived, name):
    life = lived(name)
    kept = {"blocks/levels/fast"} if life.arm.sleep.becomes == "dusk" else set()
    learns = life.arm.sleep.updates > 0
    pool = {"blocks/levels/slow/experts", *(["blocks/levels/slow/router"] if learns else [])}
    assert {re.sub(r"/(base|norm|a|b|w|bias)\b.*", "", path) for path in moved(life)} == pool | kept
    assert life.state.slots["slow"].active[0].tolist() == [True, True, False, False]
    before, after = (get_level(s.params, "slow")["experts"] for s in (life.newborn, life.state))
    for part, x in after.items():
        np.testing.assert_array_equal(x[:, :, 2:], before[part][:, :, 2:])
    learned = np.any(np.asarray(after["b"][0]) != 0, axis=(0, 2, 3))
    assert learned.tolist() == [learns] * 2 + [False] * 2


@pytest.mark.slow
def test_reset_only_ends_a_night_with_the_function_of_the_start(lived):
    life = lived("reset_only")
    assert not life.of("seed")
    start = get_level(life.newborn.params, "fast")
    assert tree.differing(start, get_level(life.state.params, "fast")) == []
    dusk, dawn = life.of("exam", when="dusk"), life.of("exam", when="dawn")
    assert min(line["kl"][0] for line in dusk) > 1e-4
    for line in dawn:
        assert line["kl"][0] == pytest.approx(0, abs=1e-6)
        np.testing.assert_allclose(line["logp"], dawn[0]["logp"], rtol=1e-6)


@pytest.mark.slow
def test_equal_capacity_moe_opens_no_slot_and_trains_every_expert(lived):
    life = lived("equal_capacity_moe")
    assert life.newborn.slots["slow"].active.all()
    assert tree.differing(life.newborn.slots, life.state.slots) == []
    assert {path.split("/")[2:4][0] for path in moved(life)} == {"slow"}
    assert not any("base" in path or "norm" in path for path in moved(life))
    experts = [get_level(s.params, "slow")["experts"]["b"] for s in (life.newborn, life.state)]
    assert np.any(experts[0] != experts[1], axis=(0, 1, 3, 4)).all()


@pytest.mark.slow
def test_fixed_capacity_moves_only_the_receivers_base_at_night(lived):
    life = lived("fixed_capacity_on_policy")
    paths = moved(life)
    assert paths and all(re.match(r"blocks/levels/slow/(base|norm)/", path) for path in paths)
    assert not life.state.slots["slow"].active.any()
    assert int(life.state.counters["nights"][0]) == 2


@pytest.mark.slow
def test_static_replay_keeps_raw_text_and_costs_as_much_as_sleep(lived):
    life = lived("static_replay")
    arm, sleep = life.arm, life.bench.config.sleep
    assert arm.raw_text
    one = replay_step(arm.model.config, arm.sleep)
    night = sum(flops.night(arm.model.config, sleep).values())
    assert abs(arm.sleep.updates * one - night) <= sleep.inner * sleep.epochs * one
    assert len(life.of("seed")) == 2 * arm.sleep.blocks
    assert arm.sleep.updates > sleep.updates  # nothing has to be written first


@pytest.mark.slow
def test_cues_of_ones_own_replace_the_subjects_of_the_texts(lived):
    own, given = lived("sleep_own_cues"), lived("sleep")
    assert not own.of("cues") and len(own.of("own_cues")) == 3
    assert not given.of("own_cues") and len(given.of("cues")) == 3
    assert (np.asarray(own.state.cues.length) <= own.arm.sleep.own_cue_tokens).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ewc", "inca"])
def test_who_writes_no_texts_is_offered_the_usual_cues_where_others_write_their_own(
    brief, tmp_path, name
):
    config = brief.config(sleep={"cues": "self"})
    if name == "inca":
        model = dataclasses.replace(config.model, vocab_size=1024)
        config = dataclasses.replace(config, world=labels_in(tmp_path), model=model)
    bench = brief.bench(config)
    arm = brief.arm(bench, name)
    offers = [m for m in life_of(bench, arm).agenda() if "cues" in m.record.get("event", "")]
    assert [(m.record["event"], m.record["day"]) for m in offers] == [
        ("cues", day) for day in (-1, 0, 1)
    ]
    state, kept = lives.newborns(bench, arm), []
    for moment in offers:
        state, metrics = moment.run(state)
        kept.append(int(metrics["cues"][0][0]))
    assert 0 < kept[0] <= kept[-1] == int((state.cues.day >= -1).sum())


# --- arms that do not ----------------------------------------------------------------------------


@pytest.mark.slow
def test_wake_only_has_no_nights_and_moves_the_fast_level_alone(lived):
    life = lived("wake_only")
    assert life.arm.learner.rests == ()
    assert life.state.counters["nights"].tolist() == [0]
    assert {line["event"] for line in life.lines} == {"wake", "exam"}
    assert all(re.match(r"blocks/levels/fast/", path) for path in moved(life))
    levels = zip(life.arm.model.config.levels, life.bench.config.model.levels, strict=True)
    for mine, given in levels:
        assert mine.night == 0 and dataclasses.replace(mine, night=given.night) == given


@pytest.mark.slow
def test_cms_moves_the_slow_level_awake_too(lived):
    life = lived("cms_without_seeding")
    assert life.arm.learner.rests == ()
    paths = {path.rsplit("/", 1)[0] for path in moved(life)}
    levels = {path.split("/")[2] for path in paths}
    assert levels == {"fast", "slow"}
    assert all(re.match(r"blocks/levels/\w+/(base|norm)", path) for path in paths)
    kept = lived("wake_only")
    before, after = (parts_of(s.params, "slow", BASE) for s in (kept.newborn, kept.state))
    assert tree.differing(before, after) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft_all", "joint", "ewc"])
def test_sft_all_joint_and_ewc_move_every_parameter(lived, name):
    life = lived(name)
    pool = re.compile("experts|router")
    assert moved(life) == all_paths(life)
    assert not any(map(pool.search, all_paths(life)))


@pytest.mark.slow
def test_ewc_protects_what_the_last_night_measured(lived):
    life = lived("ewc")
    anchor = life.state.anchors[EWC]
    assert tree.differing(anchor["star"], life.state.params) == []
    assert all((np.asarray(x) >= 0).all() for x in jax.tree.leaves(anchor["fisher"]))
    assert all(np.asarray(x).any() for x in jax.tree.leaves(anchor["fisher"]))
    assert life.of("wake")[-1]["penalty"][0] > 0
    # Before the first day, what pretraining told is measured: no night that anybody counts.
    blocks = -(-16 // (life.bench.config.sleep.inner * life.bench.config.sleep.rows))
    assert [line["day"] for line in life.of("seed")] == [-1] * blocks + [0] * blocks + [1] * blocks
    assert [line["nights"][0] for line in life.of("exam")] == [0, 1, 1, 2]
    assert life.of("wake")[0]["penalty"][0] > 0


@pytest.mark.slow
def test_lora_moves_adapters_alone(lived):
    life = lived("lora_sequential")
    adapters = {path for path in all_paths(life) if path.startswith(ADAPTERS)}
    assert moved(life) == adapters != set()
    kl = [line["kl"][0] for line in life.of("exam")]
    assert min(kl) > 1e-6  # exams are asked with the adapters in their places


@pytest.mark.slow
@pytest.mark.parametrize("name", ["icl", "inca"])
def test_icl_and_inca_leave_the_model_bit_identical(lived, name):
    life = lived(name)
    assert moved(life) == set()
    assert tree.differing(life.newborn.slots, life.state.slots) == []
    assert {line["kl"][0] for line in life.of("exam")} == {0.0}


@pytest.mark.slow
def test_icl_has_the_latest_facts_in_front_of_every_question(lived):
    life = lived("icl")
    life_ = life_of(life.bench, life.arm)
    first, second = (life_.paper(day)["exam"] for day in (0, 1))
    longer = np.asarray(first.lengths - life.bench.paper.lengths)
    assert longer.min() > 0 and (first.prompts != second.prompts).any()
    exams = life.of("exam")
    assert exams[0]["logp"] != exams[1]["logp"]  # the same model, asked behind other facts


@pytest.mark.slow
def test_inca_knows_the_classes_of_the_days_so_far(lived):
    life = lived("inca")
    sums = life.state.anchors[GAUSSIANS]
    assert sums["count"].tolist() == [[2.0] * (len(FRUIT) + len(BIRDS))]
    assert int(life.state.counters["nights"][0]) == 2
    first, _ = life.of("exam", when="dawn")
    assert first["recall"][0][1] == 0  # no bird was ever seen
    assert not np.any([line["logp"] for line in life.of("exam")])  # answers are not written


# --- an arm of one's own -------------------------------------------------------------------------


def reversed_night(run):
    """The night of ``sleep`` with a divergence of one's own."""
    model = Model(run.model)
    own = seeding(model, reverse_kl, alpha=run.sleep.alpha)
    made = learner(model, run.sleep, method=lambda sender, receiver: {"objective": own})
    return Arm(model, run.sleep, made)


@pytest.fixture
def own_arm(monkeypatch):
    monkeypatch.setitem(ARMS, "reversed", None)  # gone again behind the test
    add_arm("reversed", reversed_night)
    return "reversed"


@pytest.mark.slow
def test_an_arm_of_ones_own_lives_and_is_reported_beside_the_others(
    lived, brief, own_arm, tmp_path
):
    config = dataclasses.replace(lived("sleep").bench.config, arms=["sleep", own_arm])
    check(config)
    mine, usual = brief.live(brief.bench(config), own_arm, tmp_path / "run"), lived("sleep")
    assert mine.state.counters["nights"].tolist() == [2]
    results = outcomes(mine.bench, mine.run, {own_arm: mine.arm})
    (told,) = results["arms"][own_arm]
    (theirs,) = outcomes(usual.bench, usual.run, {"sleep": usual.arm})["arms"]["sleep"]
    assert told["flops"] == theirs["flops"] and told["tokens"] == theirs["tokens"]
    assert "mean_recall_last" in summarize(results)["arms"][own_arm]["figures"]
    assert tree.differing(mine.state.params, usual.state.params)


def test_an_arm_of_ones_own_cannot_stand_for_one_of_the_bench():
    for name in ("sleep", "two words", ""):
        with pytest.raises(ConfigError, match=r"arms = .*a name of its own"):
            add_arm(name, reversed_night)
    assert "two words" not in ARMS


def test_an_arm_of_ones_own_that_never_sleeps_follows_no_schedule(lived, own_arm):
    add_arm(own_arm, ARMS["wake_only"])
    assert not build_arm(own_arm, lived("sleep").bench.config, 0).follows_schedule
