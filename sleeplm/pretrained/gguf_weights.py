"""From the tensors of a GGUF file to parameters, straight into their layout."""

from __future__ import annotations

import dataclasses
import re

import jax

from sleeplm.core.types import Params, PyTree
from sleeplm.models.config import ModelConfig
from sleeplm.pretrained.gguf_config import EMBED, FREQUENCIES, UNEMBED
from sleeplm.pretrained.gguf_file import GgufFile
from sleeplm.pretrained.hf_weights import Source, assemble, check_tensors, sources

LAYER = re.compile(r"model\.layers\.\{\}\.(.*)\.weight")
#: What the tensors of a Hugging Face folder are called here.
NAMES = {
    "model.embed_tokens.weight": EMBED,
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": UNEMBED,
}
NAMES_OF_A_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def load_gguf(
    file: GgufFile,
    config: ModelConfig,
    shardings: PyTree | None = None,
    learners: int | None = None,
) -> Params:
    """The file's weights, dequantised, as parameters of a ``Model``.

    Args:
      file: of :func:`~sleeplm.pretrained.gguf_file.read_gguf`.
      config: of :func:`~sleeplm.pretrained.gguf_config.gguf_config`; ``param_dtype`` says the type.
      shardings, learners: as in :func:`~sleeplm.pretrained.hf_weights.load_params`; each device's
        part is dequantised from the rows that it needs.

    Raises:
      ConfigError: a tensor is missing, left over, of another shape than the metadata says, or of a
        type that ``gguf`` cannot dequantise.
    """
    tree = jax.tree.map(_renamed, sources(config))
    tensors = dict(file.tensors)
    if file.metadata["general.architecture"] == "llama":
        turned = re.compile(r"blk\.\d+\.attn_[qk]\.weight")
        for name in filter(turned.fullmatch, file.tensors):
            tensors[name] = dataclasses.replace(tensors[name], turned=config.width_of_head)
    tensors.pop(FREQUENCIES, None)  # the configuration has them
    check_tensors(tensors, config, tree, "the metadata says")
    return assemble(tensors, config, tree, shardings, learners)


def _renamed(source: Source) -> Source:
    match = LAYER.fullmatch(source.name)
    name = f"blk.{{}}.{NAMES_OF_A_LAYER[match[1]]}.weight" if match else NAMES[source.name]
    return dataclasses.replace(source, name=name)
