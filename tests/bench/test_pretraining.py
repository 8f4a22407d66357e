"""Backbones are trained once: all together, or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.bench.lives import learners_of
from sleeplm.bench.material import prepare
from sleeplm.bench.pretraining import cache_key, pretrained
from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.methods.pretrain import PretrainConfig
from sleeplm.models.graft import backbone_config
from sleeplm.models.transformer import Model
from sleeplm.runtime import parallel
from sleeplm.runtime.checkpoint import Checkpoints
from sleeplm.runtime.learners import put_params
from sleeplm.runtime.lifecycle import Moment
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.run import METRICS, Run, Stage

pytestmark = pytest.mark.slow


class Nursery:
    """Two learners whose backbones are kept in one cache."""

    def __init__(self, brief, folder):
        self.folder, self.cache = folder, folder / "cache"
        training = PretrainConfig(steps=4, batch=4, length=96, chunk=2, warmup=1)
        self.config = brief.config(seeds=2, pretrain=training, cache=str(self.cache))
        self.model = Model(backbone_config(self.config.model))
        self.learners = learners_of(self.config)
        self.materials = [prepare(one) for one in self.learners]

    def run(self, name: str, **more) -> Run:
        return Run(self.folder / name, self.config, quiet=True, **more)

    def pretrained(self, run: Run):
        run.claim()
        return pretrained(run, self.model, self.learners, self.materials)

    def store(self, e: int):
        return self.cache / cache_key(self.model, self.learners[e], self.materials[e])

    def stored(self, e: int):
        like = jax.eval_shape(self.model.init, jax.random.key(0))
        with Checkpoints(self.store(e)) as checkpoints:
            return checkpoints.restore(like).learner


@pytest.fixture(scope="module")
def nursery(brief, tmp_path_factory):
    return Nursery(brief, tmp_path_factory.mktemp("nursery"))


@pytest.fixture(scope="module")
def first(nursery):
    """The run that trained, and its parameters."""
    run = nursery.run("first")
    return run, nursery.pretrained(run)


def trained_steps(run: Run) -> list[int]:
    path = run.directory / METRICS
    return [line["step"] for line in read_metrics(path)] if path.exists() else []


def test_without_a_cache_all_are_trained_together_and_each_is_kept(nursery, first):
    run, params = first
    assert trained_steps(run) == [2, 4]
    for line in read_metrics(run.directory / METRICS):
        assert len(line["loss"]) == 2 and line["loss"][0] != line["loss"][1]
    born = jax.jit(nursery.model.init)(jax.random.key(nursery.learners[0].seed))
    assert tree.differing(born, jax.tree.map(lambda x: x[0], params))
    assert sorted(path.name for path in nursery.cache.iterdir()) == sorted(
        nursery.store(e).name for e in (0, 1)
    )


def test_what_is_kept_is_what_was_trained(nursery, first):
    _, params = first
    for e in (0, 1):
        mine = jax.tree.map(lambda x, e=e: x[e], params)
        assert tree.differing(nursery.stored(e), mine) == []


def test_a_cache_that_has_all_is_used_and_nothing_is_trained(nursery, first):
    _, params = first
    run = nursery.run("second")
    assert tree.differing(nursery.pretrained(run), params) == []
    assert trained_steps(run) == [] and not run.has("pretrain")


@contextlib.contextmanager
def without_cache(nursery):
    """As where the cache was removed, or is not seen; what is written there meanwhile is lost."""
    hidden = nursery.folder / "hidden"
    nursery.cache.rename(hidden)
    try:
        yield
    finally:
        shutil.rmtree(nursery.cache, ignore_errors=True)
        hidden.rename(nursery.cache)


def contents(run: Run) -> dict[str, bytes]:
    files = [path for path in run.directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(run.directory)): path.read_bytes() for path in files}


def live(run: Run) -> None:
    """An arm's life, of one moment."""
    moment = Moment("day", {"event": "day"}, lambda state: (state + 1, {}))
    run.stage(Stage("sleep", lambda: jnp.int32(0), [moment], None))


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 2, "tensor": 2}])
def test_a_run_that_found_them_goes_on_with_those_when_the_cache_is_gone(nursery, first, mesh):
    """On another mesh too: what was found on one device is put where a run of its own has it."""
    _, params = first
    run = nursery.run(f"found_{len(mesh)}")
    nursery.pretrained(run)
    live(run)
    before = contents(run)
    with without_cache(nursery):
        again, over = nursery.run(run.directory.name, resume=True), mesh and parallel.mesh(mesh)
        found = pretrained(again, nursery.model, nursery.learners, nursery.materials, over or None)
        assert not nursery.cache.exists()
    assert tree.differing(jax.device_get(found), jax.device_get(params)) == []
    if mesh:
        pairs = zip(*map(jax.tree.leaves, (found, put_params(params, over))), strict=True)
        for mine, placed in pairs:
            assert mine.sharding.is_equivalent_to(placed.sharding, placed.ndim)
    assert contents(again) == before and again.has("sleep")


def test_a_run_that_kept_no_backbone_is_refused_without_its_cache(nursery, first):
    """As runs were begun before they kept what they found: nothing of it is lost."""
    _, params = first
    run = nursery.run("before")
    run.claim()
    live(run)
    before = contents(run)
    again = nursery.run("before", resume=True)
    assert tree.differing(nursery.pretrained(again), params) == []
    assert contents(again) == before, "the cache has them: it goes on from there"
    with without_cache(nursery), pytest.raises(ConfigError, match=r"cache = .*was begun with"):
        nursery.pretrained(again)
    assert contents(again) == before


def test_a_cached_backbone_that_cannot_be_read_is_left_for_the_run_that_needs_it(nursery, first):
    run = nursery.run("unreadable")
    run.claim()
    live(run)
    file = next(path for path in nursery.store(1).rglob("*") if path.parent.name == "d")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    try:
        with pytest.raises(ConfigError, match="cache = "):
            nursery.pretrained(run)
        assert file.exists()
    finally:
        file.write_bytes(whole)


def test_one_that_is_missing_trains_all_again_to_the_same_parameters(nursery, first):
    _, params = first
    kept = {p: p.read_bytes() for p in nursery.store(0).rglob("*") if p.is_file()}
    shutil.rmtree(nursery.store(1))
    run = nursery.run("third")
    assert tree.differing(nursery.pretrained(run), params) == []
    assert trained_steps(run) == [2, 4]
    assert {p: p.read_bytes() for p in nursery.store(0).rglob("*") if p.is_file()} == kept
    mine = jax.tree.map(lambda x: x[1], params)
    assert tree.differing(nursery.stored(1), mine) == []  # it is there again


def test_a_run_that_has_trained_goes_on_with_that_whatever_the_cache_holds(nursery, first):
    before, params = first
    with without_cache(nursery):
        again = nursery.run("first", resume=True)
        assert tree.differing(nursery.pretrained(again), params) == []
        assert trained_steps(again) == trained_steps(before) == [2, 4]


def test_lives_that_differ_in_their_memory_only_share_a_backbone(nursery):
    fast, slow = nursery.config.model.levels
    others = [
        dataclasses.replace(fast, night=8, learning_rate=0.5, width=2 * fast.width),
        dataclasses.replace(slow, slots=slow.slots + 1, rank=1, top_k=1, gate_bias=2.0),
    ]
    model = dataclasses.replace(nursery.config.model, levels=others)
    assert backbone_config(model) == nursery.model.config
    wider = [fast, dataclasses.replace(slow, width=2 * slow.width)]
    model = dataclasses.replace(nursery.config.model, levels=wider)
    assert backbone_config(model) != nursery.model.config


def test_a_backbone_is_known_by_everything_that_it_depends_on(nursery):
    one, material = nursery.learners[0], nursery.materials[0]
    key = cache_key(nursery.model, one, material)
    other = dataclasses.replace(material, pretrain=material.pretrain[:-1])
    training = dataclasses.replace(one.pretrain, learning_rate=one.pretrain.learning_rate / 2)
    wider = Model(dataclasses.replace(nursery.model.config, d_model=32))
    keys = {
        key,
        cache_key(nursery.model, one, other),
        cache_key(nursery.model, dataclasses.replace(one, seed=one.seed + 2), material),
        cache_key(nursery.model, dataclasses.replace(one, pretrain=training), material),
        cache_key(wider, one, material),
    }
    assert len(keys) == 5
    night = dataclasses.replace(one, sleep=dataclasses.replace(one.sleep, updates=0), days=1)
    assert cache_key(nursery.model, night, material) == key  # nights come later
    assert np.all([len(name) == 16 for name in keys])


def test_runs_that_train_the_same_at_once_do_not_meet(nursery, first, monkeypatch):
    """Both miss the backbone, and the second writes it while the first still does."""
    save, places = Checkpoints.save, []

    def slowly(checkpoints, *what):
        if checkpoints.directory.parent == nursery.cache:
            places.append(str(checkpoints.directory))
            if len(places) == 1:
                nursery.pretrained(nursery.run("at_once_2"))
                assert nursery.store(0).is_dir()
        return save(checkpoints, *what)

    for e in (0, 1):
        shutil.rmtree(nursery.store(e))
    monkeypatch.setattr(Checkpoints, "save", slowly)
    said = []
    monkeypatch.setattr(Run, "say", lambda run, text: said.append(text))
    nursery.pretrained(nursery.run("at_once_1"))
    assert not [text for text in said if "not cached" in text]
    assert len(set(places)) == len(places) == 4  # opening a directory removes unfinished saves
    _, params = first
    for e in (0, 1):
        mine = jax.tree.map(lambda x, e=e: x[e], params)
        assert tree.differing(nursery.stored(e), mine) == []
    assert len(list(nursery.cache.iterdir())) == 2


def test_an_unfinished_store_is_replaced(nursery, first):
    shutil.rmtree(nursery.store(0))
    nursery.store(0).mkdir()
    nursery.pretrained(nursery.run("unfinished"))
    _, params = first
    assert tree.differing(nursery.stored(0), jax.tree.map(lambda x: x[0], params)) == []
