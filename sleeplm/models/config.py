"""Shape of a model: a decoder-only backbone whose MLPs are a chain of memory levels."""

from __future__ import annotations

import dataclasses

from sleeplm.core import checks
from sleeplm.core.types import Array
from sleeplm.memory.experts import DISPATCHES
from sleeplm.memory.levels import LevelConfig, check_levels
from sleeplm.models.rope import RopeScaling, frequencies

DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("full", "dots")


@dataclasses.dataclass
class ModelConfig:
    """Backbone and levels.

    Attributes:
      vocab_size: V. d_model: D. n_layers: N. n_heads: H query heads.
      n_kv_heads: key/value heads, a divisor of H (grouped-query attention).
      head_dim: width of one head; 0 means D / H.
      max_len: longest sequence the model is asked to handle, which runs are held to.
      bos, eos: ids of the tokens that begin and end a text.
      levels: memory levels, fastest first (Eq. 1).
      wiring: ``sequential`` chains them; ``independent`` adds them side by side, each with a
        weight of its own (``mix``, 1 at the start; wake and sleep leave it alone, since it would
        move every memory at once, a phase of one's own may train it); ``nested`` runs the
        fastest, which restarts from the next slower one's weights whenever that one moves.
      rope_theta: base of the rotary frequencies. rope_scaling: how they are stretched.
      tie_embeddings: the unembedding is the transposed embedding.
      qk_norm: RMS-normalise queries and keys per head.
      dtype: type of activations; param_dtype: type of parameters; memory_dtype: type of those
        that a backbone has not: grafted levels, experts and their routers. A step is lost where it
        is less than half of what a type can tell apart: in bfloat16 a norm, which is about 1, does
        not learn at a rate of 1e-3.
      scan_layers: run the layers in one ``lax.scan`` (compiles once per block) instead of
        unrolling them (faster for a few small layers).
      remat: recompute each block in the backward pass instead of storing its activations.
      remat_policy: what of a block is recomputed then: ``full``, all of it; ``dots``, all but its
        products with weight matrices, which are stored. Neither changes a result.
      dispatch: how tokens reach their experts, see :func:`sleeplm.memory.experts.apply_experts`.
    """

    vocab_size: int = 1024
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 0
    max_len: int = 64
    bos: int = 1
    eos: int = 2
    levels: list[LevelConfig] = dataclasses.field(default_factory=lambda: [LevelConfig()])
    wiring: str = "sequential"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = dataclasses.field(default_factory=RopeScaling)
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    qk_norm: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    memory_dtype: str = "float32"
    scan_layers: bool = False
    remat: bool = False
    remat_policy: str = "full"
    dispatch: str = "auto"

    @property
    def width_of_head(self) -> int:
        return self.head_dim or self.d_model // self.n_heads

    @property
    def rope_frequencies(self) -> Array:
        """float32 [W / 2], see :func:`sleeplm.models.rope.frequencies`."""
        return frequencies(self.width_of_head, self.rope_theta, self.rope_scaling)

    def level(self, name: str) -> LevelConfig:
        return next(level for level in self.levels if level.name == name)

    def check(self, field: str) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "max_len"):
            checks.positive_integer(f"{field}.{name}", getattr(self, name))
        for name in ("bos", "eos"):
            checks.integer(f"{field}.{name}", getattr(self, name))
            checks.in_range(f"{field}.{name}", getattr(self, name), 0, self.vocab_size - 1)
        checks.integer(f"{field}.head_dim", self.head_dim)
        checks.at_least(f"{field}.head_dim", self.head_dim, 0)
        checks.require(
            self.n_heads % self.n_kv_heads == 0,
            f"{field}.n_kv_heads",
            self.n_kv_heads,
            f"use a divisor of n_heads ({self.n_heads})",
        )
        checks.require(
            self.head_dim > 0 or self.d_model % self.n_heads == 0,
            f"{field}.n_heads",
            self.n_heads,
            f"use a divisor of d_model ({self.d_model}) or set head_dim",
        )
        checks.require(
            self.width_of_head % 2 == 0,
            f"{field}.head_dim",
            self.width_of_head,
            "use an even width: rotary embeddings turn pairs",
        )
        checks.positive(f"{field}.rope_theta", self.rope_theta)
        self.rope_scaling.check(f"{field}.rope_scaling")
        checks.positive(f"{field}.norm_eps", self.norm_eps)
        for name in ("dtype", "param_dtype", "memory_dtype"):
            checks.one_of(f"{field}.{name}", getattr(self, name), DTYPES)
        checks.one_of(f"{field}.remat_policy", self.remat_policy, REMAT_POLICIES)
        checks.one_of(f"{field}.dispatch", self.dispatch, DISPATCHES)
        check_levels(self.levels, self.wiring, f"{field}.levels")
