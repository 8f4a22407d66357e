"""Four simulated devices, and a learner small enough to compile in a second."""

from __future__ import annotations

import gc
import os
import pathlib
import zlib

# Before jax is imported: it counts its devices once. Tiny models are compiled more than they run.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",  # they take two fifths of the time to compile
        "--xla_cpu_parallel_codegen_split_count=1",  # workers have a core each: a tenth less
    ]
)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core.types import State
from sleeplm.memory.cues import remember
from sleeplm.memory.levels import LevelConfig
from sleeplm.methods.config import SleepConfig
from sleeplm.methods.learner import learner
from sleeplm.models.config import ModelConfig
from sleeplm.models.encoder import Encoder, EncoderConfig, SentenceEncoder
from sleeplm.models.transformer import Model
from sleeplm.runtime.config import read_module

VOCABULARY, LENGTH, CUE = 40, 12, 4
BOS, EOS = 1, 2


class Tiny:
    """Makers of tiny models, batches and learners."""

    vocabulary, length, cue, eos = VOCABULARY, LENGTH, CUE, EOS

    @staticmethod
    def level(name, **settings) -> LevelConfig:
        return LevelConfig(
            **{"name": name, "width": 16, "rank": 4, "learning_rate": 0.01} | settings
        )

    @classmethod
    def two_levels(cls, night=4, slots=3, **slow) -> list[LevelConfig]:
        """The usual pair: ``fast`` moves at every step, ``slow`` only receives."""
        return [
            cls.level("fast", kind="graft", period=1, night=night),
            cls.level("slow", **{"slots": slots, "top_k": min(2, slots), **slow}),
        ]

    @classmethod
    def three_levels(cls, slots=3, **middle) -> list[LevelConfig]:
        """A chain: ``fast`` hands on to ``middle``, which hands on to ``slow`` half as often."""
        pool = {"slots": slots, "top_k": 2}
        return [
            cls.level("fast", kind="graft", period=1, night=4),
            cls.level("middle", kind="graft", night=8, **{"period": 2, **pool, **middle}),
            cls.level("slow", **pool),
        ]

    @classmethod
    def model(cls, levels=None, **settings) -> Model:
        config = ModelConfig(
            **{
                "vocab_size": VOCABULARY,
                "d_model": 16,
                "n_layers": 1,
                "n_heads": 2,
                "n_kv_heads": 1,
                "max_len": 16,
                "levels": levels or cls.two_levels(),
                **settings,
            }
        )
        config.check("model")
        return Model(config)

    @staticmethod
    def config(make=SleepConfig, **settings) -> SleepConfig:
        """A short night: two extractions of two minibatches each."""
        short = {"updates": 4, "inner": 2, "epochs": 1, "rows": 8, "group": 2, "length": 9}
        config = make(**{**short, "cue_tokens": CUE, "reservoir": 16, "chunk": 8, **settings})
        config.check("sleep")
        return config

    @staticmethod
    def params(model, seed=0):
        """Fresh parameters; where they start at zero, except for experts, a little noise."""
        params = jax.jit(model.init)(jax.random.key(seed))
        levels = params["blocks"]["levels"]
        for i, level in enumerate(model.config.levels):
            if level.kind == "graft":
                down = levels[level.name]["base"]["down"]
                noise = 0.3 * jax.random.normal(jax.random.key(seed + i), down["kernel"].shape)
                levels[level.name]["base"]["down"] = {"kernel": noise}
        return params

    @staticmethod
    def text(seed, rows=8):
        """A wake batch with two documents a row, and ragged padding."""
        random = np.random.default_rng(seed)
        tokens = random.integers(3, VOCABULARY, (rows, LENGTH)).astype(np.int32)
        end = random.integers(6, LENGTH + 1, (rows, 1))
        index = np.arange(LENGTH)
        segments = np.where(index < end, 1 + (index >= 4), 0).astype(np.int32)
        return {"tokens": np.where(segments > 0, tokens, 0), "segments": segments}

    @classmethod
    def texts(cls, n, rows=8):
        return [cls.text(seed, rows) for seed in range(n)]

    @staticmethod
    def rows(config, today=0, first=0):
        """A night batch: numbered rows."""
        count = config.inner * config.rows
        rows = first + np.arange(count, dtype=np.int32).reshape(config.inner, config.rows)
        return {"rows": rows, "today": np.int32(today)}

    @staticmethod
    def cues(seed, day, n=6):
        random = np.random.default_rng(100 + seed)
        tokens = random.integers(3, VOCABULARY, (n, CUE)).astype(np.int32)
        tokens[:, 0] = BOS
        length = random.integers(2, CUE + 1, n).astype(np.int32)
        tokens[np.arange(CUE) >= length[:, None]] = 0
        return {"tokens": tokens, "length": length, "today": np.int32(day)}

    @classmethod
    def learner(cls, model, config, seed=0, **kwargs) -> tuple[object, State]:
        """A learner and its state, with cues of day -1 and day 0 to tell from."""
        made = learner(model, config, chunk=8, **kwargs)
        state = jax.jit(made.init)(cls.params(model, seed), jax.random.key(seed))
        cues = state.cues
        for day in (-1, 0):
            batch = cls.cues(seed, day)
            offer = (batch["tokens"], batch["length"], batch["today"])
            cues = remember(cues, *offer, jax.random.key(seed + 2 + day))
        return made, state.replace(cues=jax.tree.map(jnp.asarray, cues))


def pytest_configure(config):
    skips = read_module(str(pathlib.Path(__file__).with_name("skips.py")))
    config.pluginmanager.register(skips)


@pytest.fixture(scope="session", autouse=True)
def seldom_collecting():
    """Tracing makes many objects and little garbage: looking for it takes a seventh of a life."""
    before = gc.get_threshold()
    gc.set_threshold(100_000)
    yield
    gc.set_threshold(*before)


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    """Programs that several tests compile are compiled by the first, in whichever process."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def tiny() -> type[Tiny]:
    return Tiny


@pytest.fixture(scope="session")
def tiny_encoder() -> SentenceEncoder:
    """A sentence encoder with random weights, which reads words; cosines are between 0 and 1."""
    config = EncoderConfig(97, d_model=8, n_layers=2, n_heads=2, width=16, max_positions=48)

    def pieces(texts):
        return [[1, *(3 + zlib.crc32(w.encode()) % 94 for w in t.split()), 2] for t in texts]

    params = jax.jit(Encoder(config).init)(jax.random.key(5))
    return SentenceEncoder(Encoder(config), params, pieces, max_len=40)
