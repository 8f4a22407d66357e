"""A life on a published backbone: its weights and tokenizer, and general text in every exam."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file

from sleeplm import cli
from sleeplm.bench.exams import answer_lengths
from sleeplm.bench.general import general_loss, general_rows
from sleeplm.bench.material import paper_of, prepare
from sleeplm.bench.pretraining import pretrained
from sleeplm.core.errors import ConfigError
from sleeplm.data.text import train_bpe
from sleeplm.data.tokenizer_files import hf_tokenizer, hf_tokenizer_config
from sleeplm.models.graft import backbone_config
from sleeplm.models.transformer import Model
from sleeplm.pretrained import hf_weights
from sleeplm.pretrained.hf_export import save_backbone
from sleeplm.runtime import parallel
from sleeplm.runtime.config import check, load_config, read_module
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.run import Run

simulated = read_module(str(pathlib.Path(__file__).parents[1] / "simulated.py"))
LIFE = f"{pathlib.Path(__file__).with_name('tiny_life.py')}:brief"
TEXT = "The cat sat on the mat and looked at the moon for a long while.\n" * 40


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([TEXT], 320)


@pytest.fixture(scope="module")
def published(tokenizer, tmp_path_factory):
    """A folder as others publish models, its weights, and a file of general text."""
    folder = tmp_path_factory.mktemp("published")
    model = load_config(LIFE, [f"--config.model.vocab_size={tokenizer.vocab_size}"]).model
    params = Model(backbone_config(model)).init(jax.random.key(5))
    save_backbone(folder, model, params)
    (folder / "tokenizer.json").write_text(json.dumps(hf_tokenizer(tokenizer)))
    (folder / "tokenizer_config.json").write_text(json.dumps(hf_tokenizer_config(96)))
    (folder / "general.txt").write_text(TEXT)
    return folder, params


def settings(published, tokenizer, **changes):
    folder, _ = published
    overrides = {
        "backbone": folder,
        "general": folder / "general.txt",
        "general_tokens": 300,
        "model.vocab_size": tokenizer.vocab_size,
        **changes,
    }
    return [f"--config.{name}={value}" for name, value in overrides.items()]


@pytest.fixture
def config(published, tokenizer):
    return load_config(LIFE, settings(published, tokenizer))


def test_nothing_is_pretrained_and_every_learner_starts_with_the_published_weights(
    config, published, tmp_path
):
    check(config)
    run = Run(tmp_path / "run", config, quiet=True)
    model = Model(backbone_config(config.model))
    found = pretrained(run, model, [config, config], [None, None])
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(published[1]), strict=True):
        np.testing.assert_array_equal(ours, np.stack([theirs, theirs]))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_on_a_mesh_every_device_reads_its_own_part_of_them(config, published, tmp_path):
    run, model = Run(tmp_path / "run", config, quiet=True), Model(backbone_config(config.model))
    mesh = parallel.mesh({"fsdp": 2, "tensor": 2})
    asked = {}
    original = hf_weights._piece

    def noted(tensors, source, shape, index):
        out = original(tensors, source, shape, index)
        asked[source.name] = max(asked.get(source.name, 0), out.size / np.prod(shape.shape))
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_weights, "_piece", noted)
        found = pretrained(run, model, [config], [None], mesh)
    matrices = ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")
    assert {asked[f"model.layers.{{}}.{name}.weight"] for name in matrices} == {0.25}
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(published[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs[None])
    up = found["blocks"]["levels"]["slow"]["base"]["up"]["kernel"]
    assert up.sharding.spec == PartitionSpec(None, None, "fsdp", "tensor")


def test_texts_are_read_with_the_published_tokenizer(config, tokenizer):
    material = prepare(config)
    texts = [document.text for document in material.curriculum.days[0]]
    for row, text in zip(material.days[0], texts, strict=True):
        assert row == [1, *tokenizer.encode(text), 2]


@pytest.mark.parametrize(("published_as", "end"), [([0, 2], 0), (2, 1)])
def test_texts_end_as_the_model_expects_whatever_its_tokenizer_ends_turns_with(
    published, tokenizer, tmp_path, published_as, end
):
    """Instruct models publish several ends: config.json's first is a text's, or one says which."""
    folder = tmp_path / "instruct"
    shutil.copytree(published[0], folder)
    raw = json.loads((folder / "config.json").read_text()) | {"eos_token_id": published_as}
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1]}))
    changes = {"backbone": folder, "model.eos": end}
    config = load_config(LIFE, settings(published, tokenizer, **changes))
    check(config)
    material = prepare(config)
    assert {row[-1] for day in material.days for row in day} == {end}
    assert (answer_lengths(paper_of(config, material).answers, eos=end) > 1).all()


TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}/{% endfor %}"


@pytest.fixture
def talkative(published, tmp_path):
    """The same folder with a chat template."""
    folder = tmp_path / "talkative"
    shutil.copytree(published[0], folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder, published[1]


def test_days_can_be_asked_in_chats(talkative, tokenizer, needs):
    """Statements stay texts."""
    needs("jinja2")
    config = load_config(LIFE, settings(talkative, tokenizer, chat=True))
    check(config)
    material = prepare(config)
    turns = material.tokenizer.turns
    parts = (turns.before, turns.between, turns.end)
    assert [material.tokenizer.decode(part) for part in parts] == ["[user]", "/[assistant]", "/"]

    def row_of(document):
        prompt = tokenizer.encode(document.prompt)
        answer = tokenizer.encode(document.text)[len(prompt) :]
        if not prompt:
            return [1, *answer, 2]
        return [1, *turns.before, *prompt, *turns.between, *answer, *turns.end, 2]

    assert material.days[0] == [row_of(document) for document in material.curriculum.days[0]]
    paper, questions = paper_of(config, material), material.curriculum.exams[0]
    for i, document in enumerate(questions):
        answer = [*tokenizer.encode(document.answer), *turns.end, 2]
        assert list(paper.prompts[i][: paper.lengths[i]]) == row_of(document)[: -len(answer)]
        assert list(paper.answers[i][: len(answer)]) == answer


def test_dreams_alone_can_be_asked_for_in_chats(talkative, tokenizer, needs):
    needs("jinja2")
    config = load_config(LIFE, settings(talkative, tokenizer, dream_chat=True))
    check(config)
    material, plain = prepare(config), prepare(dataclasses.replace(config, dream_chat=False))
    assert material.days == plain.days and not material.tokenizer.turns.end
    assert not plain.asker.turns.end
    assert material.asker.decode(material.asker.turns.between) == "/[assistant]"


@pytest.mark.parametrize("name", ["chat", "dream_chat"])
def test_chats_need_a_published_model(talkative, tokenizer, name):
    with pytest.raises(ConfigError, match=f"{name} = True: .*name one as backbone"):
        check(load_config(LIFE, settings(talkative, tokenizer, **{name: True}, backbone="")))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model.vocab_size": 400}, "model: vocab_size"),
        ({"model.n_layers": 2}, "model: num_hidden_layers"),
        ({"model.bos": 3}, r"model\.bos"),
        ({"model.eos": 7}, r"model\.eos = 7: must be 2, or the id of another special token"),
        ({"backbone": "nowhere"}, "nowhere"),
    ],
)
def test_a_model_of_other_sizes_is_refused_by_name(published, tokenizer, changes, field):
    with pytest.raises(ConfigError, match=field):
        check(load_config(LIFE, settings(published, tokenizer, **changes)))


def test_weights_that_cannot_be_read_leave_no_run_behind(published, tokenizer, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(published[0], damaged)
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    arguments = settings((damaged, None), tokenizer)
    assert cli.main(["run", LIFE, "--workdir", str(tmp_path / "w"), "--quiet", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(damaged) in said
    assert not (tmp_path / "w").exists()


def test_general_text_is_read_in_whole_rows(config, tokenizer):
    rows = general_rows(config, tokenizer)
    width = config.day.length
    assert rows.shape == (300 // (width - 1), width)
    assert (rows[:, 0] == 1).all()
    text = tokenizer.encode(TEXT.strip())
    np.testing.assert_array_equal(rows[:, 1:].reshape(-1), text[: rows[:, 1:].size])


def test_its_loss_is_that_of_the_whole_rows_by_hand(config, published, tokenizer):
    model, rows = Model(backbone_config(config.model)), general_rows(config, tokenizer)
    variables = {"params": published[1], "slots": model.init_slots()}
    logp = jax.nn.log_softmax(model.logits(variables, jnp.asarray(rows))[:, :-1])
    each = jnp.take_along_axis(logp, rows[:, 1:, None], 2)
    found = jax.jit(general_loss(model))(variables, rows)
    assert float(found) == pytest.approx(-float(each.mean()), rel=1e-5)


@pytest.mark.parametrize("content", ["", "too short"])
def test_too_little_general_text_is_one_line(config, tokenizer, tmp_path, content):
    (tmp_path / "short.txt").write_text(content)
    short = dataclasses.replace(config, general=str(tmp_path / "short.txt"))
    with pytest.raises(ConfigError, match="general"):
        general_rows(short, tokenizer)


@pytest.fixture(scope="module")
def lived(published, tokenizer, tmp_path_factory):
    """The directory of a whole life through the command line."""
    place = tmp_path_factory.mktemp("lived") / "run"
    arguments = settings(published, tokenizer, arms="['sleep']")
    assert cli.main(["run", LIFE, "--workdir", str(place), "--quiet", *arguments]) == 0
    return place


@pytest.mark.slow
def test_a_whole_life_reports_how_general_text_is_read(lived):
    place = lived
    (learner,) = json.loads((place / "results.json").read_text())["arms"]["sleep"]
    exams = [line for line in read_metrics(place / "metrics.jsonl") if line["event"] == "exam"]
    dawns = [line["general"][0] for line in exams if line["when"] == "dawn"]
    assert learner["general"] == dawns
    assert len(set([learner["general_start"], *dawns])) == 3  # a life changes how it reads
    arm = json.loads((place / "report.json").read_text())["arms"]["sleep"]
    rise = arm["figures"]["perplexity_rise"]["mean"]
    assert rise == pytest.approx(math.exp(dawns[-1] - learner["general_start"]) - 1, abs=1e-6)
    assert "perplexity of general text" in (place / "report.md").read_text()


@pytest.mark.slow
def test_on_a_mesh_it_lives_as_on_one_device(lived, published, tokenizer, tmp_path):
    mesh = {"mesh.fsdp": 2, "mesh.tensor": 2}
    arguments = settings(published, tokenizer, arms="['sleep']", **mesh)
    assert cli.main(["run", LIFE, "--workdir", str(tmp_path), "--quiet", *arguments]) == 0
    ours, theirs = (read_metrics(place / "metrics.jsonl") for place in (tmp_path, lived))
    assert {"wake", "seed", "exam"} < {line["event"] for line in ours}
    simulated.assert_same_lines(ours, theirs)


@pytest.mark.slow
def test_what_it_hands_on_is_the_published_model_and_memories_for_it(lived, published, tmp_path):
    out, folder = tmp_path / "out", published[0]
    assert cli.main(["export", str(lived), "--out", str(out)]) == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    ours, theirs = (load_file(place / "model.safetensors") for place in (out, folder))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor)
    again = tmp_path / "again"
    taken = ["import-memories", str(out), "--base", str(folder), "--out", str(again)]
    assert cli.main(taken) == 0
