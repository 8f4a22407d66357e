"""Memories leave a learner and come back to the same bits; nights can be added to others."""

from __future__ import annotations

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sleeplm.core.errors import ConfigError, PoolFullError
from sleeplm.core.tree import differing
from sleeplm.core.types import WRITER
from sleeplm.memory.anchors import pool_of
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.memory.slots import open_slot, take_slot
from sleeplm.methods.dreams.reinforce import with_writer
from sleeplm.methods.learner import learner
from sleeplm.pretrained.hf_export import save_backbone
from sleeplm.pretrained.learner_folder import import_memories, load_learner
from sleeplm.pretrained.memories import export_memories
from sleeplm.pretrained.memory_files import CARD, read_memories, write_memories
from sleeplm.pretrained.receive import add_night, put_memories
from sleeplm.pretrained.tensor_files import digest_of_file

#: The first bytes of a pickle of protocol 2 and later, and of a zip (what torch and numpy write).
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")


def noise(tree, key):
    """Every array moved by random numbers of its own; integers stay."""
    leaves, shape = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    moved = [
        x + jax.random.normal(k, x.shape, x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(shape, moved)


def lived(tiny, nights=2, seed=0, **model):
    """A learner on base 0 with a few nights of seed's own in its slow level."""
    made = tiny.model(**model)
    newborn = learner(made, tiny.config(), chunk=8)
    key = jax.random.key(seed)
    state = jax.jit(newborn.init)(tiny.params(made, 0), key)
    for night in range(nights):
        level, key = get_level(state.params, "slow"), jax.random.fold_in(key, night)
        experts, router = noise(level["experts"], key), noise(level["router"], key)
        one = take_slot({"experts": experts, "router": router}, jnp.int32(night))
        pool = jax.tree.map(
            lambda x, e, axis, i=night: jnp.moveaxis(
                jnp.moveaxis(x, axis, 0).at[i].set(e), 0, axis
            ),
            pool_of(state.params, "slow"),
            one,
            {"experts": {"a": 1, "b": 1}, "router": {"w": 2, "bias": 1}},
        )
        params = with_levels(state.params, {"slow": {**level, **pool}})
        slots = {**state.slots, "slow": open_slot(state.slots["slow"], night, jnp.int32(night))}
        counters = {**state.counters, "nights": jnp.int32(night + 1), "step": jnp.int32(4 * night)}
        state = state.replace(params=params, slots=slots, counters=counters)
    fast = noise(get_level(state.params, "fast"), key)
    anchor = dataclasses.replace(state.anchors["fast"], dawn=noise(fast, key))
    cues = dataclasses.replace(state.cues, day=state.cues.day + 1 + seed)
    return made, state.replace(
        params=with_levels(state.params, {"fast": fast}),
        anchors={**state.anchors, "fast": anchor},
        cues=cues,
    )


@pytest.fixture(scope="module")
def both(tiny):
    """A learner that has lived, and one of the same base that lived otherwise."""
    model, state = lived(tiny, nights=2, seed=1)
    return model, state, lived(tiny, nights=1, seed=2)[1]


def logits(tiny, model, state):
    return model.logits({"params": state.params, "slots": state.slots}, tiny.text(0)["tokens"])


def folder_of(path, memories):
    path.mkdir()
    write_memories(path, memories)
    return path


# --- all memories --------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"wiring": "independent"}, {"param_dtype": "bfloat16"}])
def test_what_a_learner_remembered_is_there_again_bit_for_bit(tiny, tmp_path, settings):
    model, state = lived(tiny, nights=2, seed=1, **settings)
    _, other = lived(tiny, nights=3, seed=2, **settings)
    read = read_memories(folder_of(tmp_path / "m", export_memories(model, state)))
    found = put_memories(model, other, read)
    assert differing(found.params, state.params) == []
    assert differing(found.slots, state.slots) == []
    assert differing(found.cues, state.cues) == []
    assert differing(found.counters, state.counters) == []
    for name in ("start", "dawn", "dawn_slots"):
        mine, theirs = (getattr(x.anchors["fast"], name) for x in (found, state))
        assert differing(mine, theirs) == []
    np.testing.assert_array_equal(logits(tiny, model, found), logits(tiny, model, state))
    assert differing(other.private, found.private) == []


def test_a_level_between_keeps_experts_and_earlier_states_of_its_own(tiny, tmp_path):
    between = tiny.level("mid", kind="graft", slots=2, top_k=1, period=4, night=8)
    fast, slow = tiny.two_levels()
    model, state = lived(tiny, nights=1, seed=1, levels=[fast, between, slow])
    mid = noise(get_level(state.params, "mid"), jax.random.key(4))
    pool = {part: jax.tree.map(jnp.zeros_like, mid[part]) for part in ("experts", "router")}
    anchor = dataclasses.replace(state.anchors["mid"], dawn={**mid, **pool})
    state = state.replace(
        params=with_levels(state.params, {"mid": {**mid, **pool}}),
        slots={**state.slots, "mid": open_slot(state.slots["mid"], 1, jnp.int32(5))},
        anchors={**state.anchors, "mid": anchor},
    )
    _, other = lived(tiny, nights=2, seed=2, levels=[fast, between, slow])
    memories = read_memories(folder_of(tmp_path / "m", export_memories(model, state)))
    assert [(one.level, one.slot, one.night) for one in memories.nights] == [
        ("slow", 0, 0),
        ("mid", 1, 5),
    ]
    found = put_memories(model, other, memories)
    assert differing([found.params, found.slots], [state.params, state.slots]) == []
    assert differing(found.anchors["mid"].dawn, anchor.dawn) == []


def test_the_writer_of_dreams_goes_along_to_whoever_has_one(both, tmp_path):
    model, state, other = both
    assert "writer" not in export_memories(model, state).parts
    params = with_writer(state.params, 2, jax.random.key(8))
    mine = noise(params[WRITER], jax.random.key(9))
    state = state.replace(params={**params, WRITER: mine})
    memories = read_memories(folder_of(tmp_path / "m", export_memories(model, state)))
    assert WRITER not in put_memories(model, other, memories).params
    theirs = with_writer(other.params, 2, jax.random.key(10))
    found = put_memories(model, other.replace(params=theirs), memories)
    assert differing(found.params, state.params) == []
    wider = other.replace(params=with_writer(other.params, 3, jax.random.key(10)))
    with pytest.raises(ConfigError, match=r"^writer"):
        put_memories(model, wider, memories)


def test_cues_stay_at_home_where_that_is_asked_for(both):
    model, state, other = both
    without = export_memories(model, state, cues=False)
    assert "cues" not in without.parts
    assert differing(put_memories(model, other, without).cues, other.cues) == []


def test_the_card_says_what_is_in_the_folder(both, tmp_path):
    model, state, _ = both
    history = {("slow", 1): {"nights": [1], "days": [4]}}
    memories = export_memories(model, state, history=history, origin={"world": "atlas"})
    card = write_memories(tmp_path, memories)
    assert json.loads((tmp_path / "memories.json").read_text()) == card
    first, second = card["nights"]
    assert (first["level"], first["slot"], first["night"], first["days"]) == ("slow", 0, 0, [])
    assert second["days"] == [4] and second["origin"] == {"world": "atlas"}
    assert [e["sha256"] for e in second["earlier"]] == [first["sha256"]]
    assert first["earlier"] == []
    d, r = model.config.d_model, model.config.level("slow").rank
    assert first["parameters"] == 2 * d * r + d + 1
    assert first["bytes"] == 4 * first["parameters"]
    file = tmp_path / card["file"]["name"]
    assert file.stat().st_size == card["file"]["bytes"]
    numbers = sum(one["bytes"] for one in [*card["nights"], *card["parts"].values()])
    assert 0 < card["file"]["bytes"] - numbers < 6000  # the header


def test_cards_of_before_have_one_type_for_all_parameters(both, tmp_path):
    model, state, _ = both
    write_memories(tmp_path, export_memories(model, state))
    card = json.loads((tmp_path / CARD).read_text())
    del card["model"]["memory_dtype"]
    for dtype in ("float32", "bfloat16"):
        card["model"]["param_dtype"] = dtype
        (tmp_path / CARD).write_text(json.dumps(card))
        assert read_memories(tmp_path).config.memory_dtype == dtype


def test_no_file_is_a_pickle(both, tmp_path):
    model, state, _ = both
    save_backbone(tmp_path, model.config, state.params)
    write_memories(tmp_path, export_memories(model, state))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    for path in tmp_path.iterdir():
        start = path.read_bytes()[:9]
        assert not start.startswith(PICKLES)
        assert start[-1:] == b"{" if path.suffix == ".safetensors" else start[:1] == b"{"


def test_memories_written_anew_take_the_place_of_the_old(both, tmp_path):
    model, state, other = both
    old = write_memories(tmp_path, export_memories(model, state))
    new = write_memories(tmp_path, export_memories(model, other))
    assert old["file"]["name"] != new["file"]["name"]
    names = {"memories.json", new["file"]["name"]}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_writer_that_is_killed_leaves_the_old_memories(both, tmp_path, monkeypatch):
    model, state, other = both
    write_memories(tmp_path, export_memories(model, state))

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("sleeplm.pretrained.memory_files.write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        write_memories(tmp_path, export_memories(model, other))
    assert len(read_memories(tmp_path).nights) == 2


# --- refused -------------------------------------------------------------------------------------


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_another_base_is_refused(both, tiny):
    model, state, other = both
    params = {**other.params, "final_norm": other.params["final_norm"].at[0].add(1e-3)}
    stranger = other.replace(params=params)
    for receive in (
        lambda: put_memories(model, stranger, export_memories(model, state)),
        lambda: add_night(model, stranger, export_memories(model, state, nights=[0])),
    ):
        with pytest.raises(ConfigError) as error:
            receive()
        assert error.value.field == "base"
        assert export_memories(model, state).base[:12] in one_line(error)
    small, state = lived(tiny, d_model=8, n_heads=2)
    with pytest.raises(ConfigError, match=r"base: hidden_size = 8: must be 16"):
        put_memories(small, state, export_memories(model, other))


@pytest.mark.parametrize(
    ("slow", "field", "found", "expected"),
    [
        ({"rank": 2}, "rank", 2, 4),
        ({"slots": 5}, "slots", 5, 3),
        ({"top_k": 1}, "top_k", 1, 2),
        ({"gate": "softmax"}, "gate", "softmax", "sigmoid"),
    ],
)
def test_other_levels_are_refused_by_field(both, tiny, slow, field, found, expected):
    model, state, _ = both
    other, receiver = lived(tiny, levels=tiny.two_levels(**slow))
    with pytest.raises(ConfigError) as error:
        put_memories(other, receiver, export_memories(model, state))
    assert error.value.field == f"model.levels[1].{field}"
    assert error.value.value == found
    assert repr(expected) in one_line(error)


def test_a_reservoir_of_another_size_is_refused(both, tiny):
    model, state, _ = both
    other = learner(model, tiny.config(reservoir=8), chunk=8)
    receiver = jax.jit(other.init)(tiny.params(model, 0), jax.random.key(0))
    with pytest.raises(ConfigError, match=r"cues\.\w+ = 'int32\[16.*the learner has int32\[8"):
        put_memories(model, receiver, export_memories(model, state))


def spoil_card(folder, **changes):
    card = json.loads((folder / "memories.json").read_text())
    (folder / "memories.json").write_text(json.dumps(card | changes))


def test_damage_is_one_line(both, tmp_path):
    model, state, _ = both
    memories = export_memories(model, state)
    bits = folder_of(tmp_path / "bits", memories)
    (file,) = bits.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    gone = folder_of(tmp_path / "gone", memories)
    next(iter(gone.glob("*.safetensors"))).unlink()
    card = folder_of(tmp_path / "card", memories)
    (card / "memories.json").write_text("{")
    empty = folder_of(tmp_path / "empty", memories)
    spoil_card(empty, model={"vocabulary": 3})
    other = folder_of(tmp_path / "other", memories)
    spoil_card(other, format="sleeplm-memories-9")
    for folder, said in {
        bits: "is damaged: its bytes are not those",
        gone: "cannot be read",
        card: "cannot be read as JSON",
        empty: "ModelConfig has no such field",
        other: "must be 'sleeplm-memories-1'",
        tmp_path / "nowhere": "no such file",
    }.items():
        with pytest.raises(ConfigError) as error:
            read_memories(folder)
        assert said in one_line(error), folder


def without(entries, name):
    return {key: value for key, value in entries.items() if key != name}


def night_with(**changes):
    """A change of the card: its second night is another."""

    def change(card):
        first, second = card["nights"]
        return {"nights": [first, {**second, **changes}]}

    return change


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        (lambda card: {"base": None}, "base", None),
        (lambda card: {"whole": "false"}, "whole", "false"),
        (lambda card: {"origin": None}, "origin", None),
        (lambda card: {"model": None}, "model", None),
        (lambda card: {"file": "memories.safetensors"}, "file", "memories.safetensors"),
        (lambda card: {"file": without(card["file"], "sha256")}, "file.sha256", None),
        (lambda card: {"file": card["file"] | {"name": 3}}, "file.name", 3),
        (lambda card: {"nights": ["x"]}, "nights", ["x"]),
        (lambda card: {"nights": {}}, "nights", {}),
        *(
            (lambda card, n=name: {"nights": [without(card["nights"][0], n)]}, f"nights[0].{name}",
             None)
            for name in ("level", "slot", "night", "sha256")
        ),
        (night_with(level=["slow"]), "nights[1].level", ["slow"]),
        (night_with(slot="1"), "nights[1].slot", "1"),
        (night_with(slot=True), "nights[1].slot", True),
        (night_with(night=-1), "nights[1].night", -1),
        (night_with(night=1 << 40), "nights[1].night", 1 << 40),
        (night_with(days=None), "nights[1].days", None),
        (night_with(nights=["x"]), "nights[1].nights", ["x"]),
        (night_with(origin=None), "nights[1].origin", None),
        (night_with(earlier=[3]), "nights[1].earlier", [3]),
        (night_with(earlier=[{"night": 0}]), "nights[1].earlier[0].sha256", None),
        (lambda card: {"nights": card["nights"][:1] * 2}, "nights[1].slot", 0),
        (night_with(slot=3), "slots.slow.3.slot", 3),
        (night_with(level="fast"), "slots.fast.1.slot", 1),
        (night_with(level="deep"), "slots.deep.1", "deep"),
        (night_with(slot=2), "slots.slow.2", None),
    ],
)  # fmt: skip
def test_a_card_that_cannot_be_right_is_one_line_that_names_the_entry(
    both, tmp_path, change, field, value
):
    model, state, _ = both
    folder = folder_of(tmp_path / "m", export_memories(model, state))
    card = json.loads((folder / "memories.json").read_text())
    spoil_card(folder, **change(card))
    with pytest.raises(ConfigError) as error:
        read_memories(folder)
    one_line(error)
    where = error.value.field.removeprefix(f"{folder / 'memories.json'}: ")
    assert (where, error.value.value) == (field, value)


@pytest.mark.parametrize("name", ["slots", "slots.slow", "slots.slow.0"])
def test_tensors_of_other_names_than_memories_have_are_one_line(both, tmp_path, name):
    """The digest of the card is that of the file: whoever wrote both wrote something else."""
    model, state, _ = both
    folder = folder_of(tmp_path / "m", export_memories(model, state))
    save_file({name: np.zeros(3, np.float32)}, folder / "memories-0.safetensors")
    digest = digest_of_file(folder / "memories-0.safetensors")
    spoil_card(folder, file={"name": "memories-0.safetensors", "sha256": digest})
    with pytest.raises(ConfigError, match="is damaged|is not in the file") as error:
        read_memories(folder)
    one_line(error)
    (folder / "memories-0.safetensors").write_text("{")
    digest = digest_of_file(folder / "memories-0.safetensors")
    spoil_card(folder, file={"name": "memories-0.safetensors", "sha256": digest})
    with pytest.raises(ConfigError, match="cannot be read") as error:
        read_memories(folder)
    one_line(error)


# --- one night alone -----------------------------------------------------------------------------


def test_a_night_is_added_to_another_learner_and_moves_nothing_else(both, tiny, tmp_path):
    model, state, other = both
    night = read_memories(folder_of(tmp_path / "n", export_memories(model, state, nights=[0])))
    assert night.parts == {} and len(night.nights) == 1
    found = add_night(model, other, night)
    pools = [pool_of(s.params, "slow") for s in (state, other, found)]
    theirs, mine, now = (
        [take_slot(pool, jnp.int32(i)) for i in range(model.config.level("slow").slots)]
        for pool in pools
    )
    assert differing(now[1], theirs[0]) == []
    assert differing([now[0], now[2]], [mine[0], mine[2]]) == []
    assert found.slots["slow"].active.tolist() == [True, True, False]
    assert found.slots["slow"].since.tolist() == [0, 1, -1]
    assert int(found.counters["nights"]) == 2
    moved = differing(found.params, other.params)
    assert moved and all("slow" in path and "base" not in path for path in moved)
    rest = {"anchors", "cues", "private"}
    assert all(differing(getattr(found, n), getattr(other, n)) == [] for n in rest)
    # The function is that of a learner in which this expert had been trained there.
    by_hand = jax.tree.map(jnp.copy, other.params)
    pool = by_hand["blocks"]["levels"]["slow"]
    for part, name, axis in (("experts", "a", 1), ("experts", "b", 1), ("router", "w", 2)):
        from_, to = pools[0][part][name].take(0, axis), jnp.moveaxis(pool[part][name], axis, 0)
        pool[part][name] = jnp.moveaxis(to.at[1].set(from_), 0, axis)
    bias = pools[0]["router"]["bias"][:, 0]
    pool["router"]["bias"] = pool["router"]["bias"].at[:, 1].set(bias)
    wanted = other.replace(params=by_hand, slots=found.slots)
    said = logits(tiny, model, found)
    np.testing.assert_array_equal(said, logits(tiny, model, wanted))
    assert not np.array_equal(said, logits(tiny, model, other))


def test_a_night_goes_to_the_slot_that_is_named(both):
    model, state, other = both
    night = export_memories(model, state, nights=[0])
    assert add_night(model, other, night, slot=2).slots["slow"].since.tolist() == [0, -1, 1]
    with pytest.raises(ConfigError, match="slot = 0: must be free: one of 1, 2"):
        add_night(model, other, night, slot=0)


def test_a_night_that_builds_on_others_says_so_and_one_that_finds_them_does_not(both):
    model, state, other = both
    first, second = (export_memories(model, state, nights=[i]) for i in (0, 1))
    with pytest.warns(UserWarning, match=r"night 1 was slept in the presence of nights 0, .*lacks"):
        add_night(model, other, second)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = add_night(model, add_night(model, other, first), second)
        together = add_night(model, other, export_memories(model, state, nights=[0, 1]))
    assert differing(found, together) == []


def test_what_cannot_be_added_is_refused(both, tiny):
    model, state, other = both
    first = export_memories(model, state, nights=[0])
    with pytest.raises(ConfigError, match=r"night = 0: is there already \(slow, slot 0\)"):
        add_night(model, state, first)
    full = lived(tiny, nights=3, seed=3)[1]
    with pytest.raises(PoolFullError, match=r"levels\.slow\.slots = 3: all are open"):
        add_night(model, full, first)
    with pytest.raises(ConfigError, match="night = 7: is in no open slot: there are 0, 1"):
        export_memories(model, state, nights=[7])
    asleep = state.replace(counters={**state.counters, "asleep": jnp.int32(1)})
    with pytest.raises(ConfigError, match="in the middle of a night"):
        export_memories(model, asleep)
    with pytest.raises(ConfigError, match="a whole learner"):
        add_night(model, other, export_memories(model, state))
    with pytest.raises(ConfigError, match="single nights"):
        put_memories(model, other, first)
    wider, receiver = lived(tiny, levels=tiny.two_levels(rank=2))
    with pytest.raises(ConfigError, match=r"levels\[1\]\.rank = 2: the memories have 4"):
        add_night(wider, receiver, first)


# --- folders -------------------------------------------------------------------------------------


@pytest.fixture
def base(both, tmp_path):
    model, state, _ = both
    (tmp_path / "base").mkdir()
    save_backbone(tmp_path / "base", model.config, state.params)
    return tmp_path / "base"


def said_by(tiny, folder):
    model, variables = load_learner(folder)
    return model.logits(variables, tiny.text(0)["tokens"])


def test_memories_and_their_base_make_a_learner_that_says_the_same(both, tiny, base, tmp_path):
    model, state, _ = both
    source = folder_of(tmp_path / "m", export_memories(model, state))
    out, _ = import_memories(source, base=base, out=tmp_path / "out")
    np.testing.assert_array_equal(said_by(tiny, out), logits(tiny, model, state))


def test_a_night_becomes_the_first_of_a_newborn_and_the_next_one_joins_it(
    both, tiny, base, tmp_path
):
    model, state, _ = both
    one, two = (
        folder_of(tmp_path / f"night{i}", export_memories(model, state, nights=[i])) for i in (0, 1)
    )
    out, _ = import_memories(one, base=base, out=tmp_path / "out")
    alone = said_by(tiny, out)
    _, memories = import_memories(two, into=out)
    assert [(n.slot, n.night) for n in memories.nights] == [(0, 0), (1, 1)]
    assert not np.array_equal(said_by(tiny, out), alone)
    # The same as adding both to a learner that holds nothing else.
    newborn = learner(model, tiny.config(), chunk=8)
    state = jax.jit(newborn.init)(tiny.params(model, 0), jax.random.key(5))
    fast = jax.tree.map(jnp.zeros_like, get_level(state.params, "fast"))
    state = state.replace(params=with_levels(state.params, {"fast": fast}))
    for source in (one, two):
        state = add_night(model, state, read_memories(source))
    np.testing.assert_allclose(said_by(tiny, out), logits(tiny, model, state), atol=1e-6)


def test_memories_of_a_base_whose_settings_were_written_as_float32_go_onto_it(
    both, tiny, base, tmp_path
):
    """Cards that were written of GGUF files have 9.99999974e-06 for 1e-5; here it is 1e-6."""
    model, state, _ = both
    source = folder_of(tmp_path / "m", export_memories(model, state))
    stored = float(np.float32(model.config.norm_eps))
    assert stored != model.config.norm_eps
    spoil_card(source, model=dataclasses.asdict(model.config) | {"norm_eps": stored})
    out, _ = import_memories(source, base=base, out=tmp_path / "out")
    np.testing.assert_array_equal(said_by(tiny, out), logits(tiny, model, state))


def test_an_index_that_does_not_count_is_left_behind(both, tiny, base, tmp_path):
    """Of one file and an index the file is read: the index would lead nowhere in a copy."""
    model, state, _ = both
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    source = folder_of(tmp_path / "m", export_memories(model, state))
    out, _ = import_memories(source, base=base, out=tmp_path / "out")
    assert not (out / "model.safetensors.index.json").exists()
    np.testing.assert_array_equal(said_by(tiny, out), logits(tiny, model, state))


def test_folders_that_do_not_belong_together_change_nothing(both, base, tmp_path):
    model, state, other = both
    night = folder_of(tmp_path / "night", export_memories(model, state, nights=[0]))
    params = {**state.params, "final_norm": state.params["final_norm"] * 2}
    (tmp_path / "stranger").mkdir()
    save_backbone(tmp_path / "stranger", model.config, params)
    with pytest.raises(ConfigError, match="they mean nothing on another"):
        import_memories(night, base=tmp_path / "stranger", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    theirs = folder_of(tmp_path / "theirs", export_memories(model, other.replace(params=params)))
    before = (theirs / "memories.json").read_bytes()
    with pytest.raises(ConfigError, match="it means nothing on another"):
        import_memories(night, into=theirs)
    assert (theirs / "memories.json").read_bytes() == before


@pytest.mark.parametrize("mine", ["float32", "bfloat16"])
def test_a_night_of_another_type_than_the_learners_is_refused_and_changes_nothing(
    both, tiny, base, tmp_path, mine
):
    """Levels learn in a type of their own, which the backbone they have in common does not say."""
    nights = {}
    for dtype in ("float32", "bfloat16"):
        model, state = lived(tiny, seed=1, memory_dtype=dtype)
        nights[dtype] = [
            folder_of(tmp_path / f"{dtype}{i}", export_memories(model, state, nights=[i]))
            for i in (0, 1)
        ]
    (theirs,) = nights.keys() - {mine}
    out, _ = import_memories(nights[mine][0], base=base, out=tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    refused = rf"levels\.slow\.experts\.a = '{theirs}\[.*\]': the learner has {mine}\["
    with pytest.raises(ConfigError, match=refused) as error:
        import_memories(nights[theirs][0], into=out)
    one_line(error)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    import_memories(nights[mine][1], into=out)
    said_by(tiny, out)


def test_a_folder_with_something_else_in_it_stays(both, base, tmp_path):
    model, state, other = both
    source = folder_of(tmp_path / "m", export_memories(model, state))
    out, _ = import_memories(source, base=base, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="is not empty"):
        import_memories(source, base=base, out=out)
    theirs = folder_of(tmp_path / "theirs", export_memories(model, other))
    _, memories = import_memories(theirs, base=base, out=out, force=True)
    assert read_memories(out).nights[0].sha256 == memories.nights[0].sha256
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ConfigError, match="holds something else"):
        import_memories(source, base=base, out=tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
