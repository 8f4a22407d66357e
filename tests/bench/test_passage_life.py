"""A life that reads passages on a published backbone: what it says is scored as text."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from sleeplm import cli
from sleeplm.bench.material import prepare
from sleeplm.core.errors import ConfigError
from sleeplm.data.answers import exact_match, token_f1
from sleeplm.data.passages import read_passages
from sleeplm.data.text import train_bpe
from sleeplm.data.tokenizer_files import hf_tokenizer, hf_tokenizer_config
from sleeplm.models.graft import backbone_config
from sleeplm.models.transformer import Model
from sleeplm.pretrained.hf_export import save_backbone
from sleeplm.runtime.config import check, load_config
from sleeplm.runtime.metrics import read_metrics

LIFE = f"{pathlib.Path(__file__).with_name('tiny_life.py')}:brief"
EXPERIMENT = pathlib.Path(__file__).parents[2] / "experiments" / "squad.py"
LENGTH, STEPS, VOCABULARY = 192, 40, 325
SIZES = [f"--config.model.vocab_size={VOCABULARY}", f"--config.model.max_len={LENGTH}"]
#: Questions go on as a sentence does, so that a tiny model that has read it can answer.
LINES = [
    {
        "title": "Ada",
        "context": "Ada lives in a house of red stone. She owns nine cats. All sleep. None eats.",
        "questions": [
            {"question": "Ada: Ada lives in", "answers": ["a red house", "house of red stone"]},
            {"question": "How many cats?", "answer": "nine"},
        ],
    },
    {
        "title": "Bo",
        "context": "Bo sails on a green sea. He is never home. It rains. He sings.",
        "questions": [{"question": "Bo: Bo sails on", "answer": "green sea"}],
    },
    {
        "title": "Cy",
        "context": "Cy is not read.",
        "questions": [{"question": "Cy?", "answer": "no"}],
    },
]


#: One round, whatever it brings.
DREAM = {
    **{"dreams": 4, "context_tokens": 64, "new_tokens": 16, "contexts": 4, "keep": 2, "extra": 1},
    **{"formats": "['implication']", "alone": True, "agree": "own", "margin": -99.0, "rank": 2},
    **{"steps": 1, "memories": 0, "rounds": 1, "reinforce": False, "gate": 4, "updates": 2},
    **{"inner": 2, "rows": 2},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with passages and a backbone as others publish them."""
    place = tmp_path_factory.mktemp("passages")
    (place / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    tokenizer = train_bpe([line["context"] for line in LINES] * 9, VOCABULARY)
    assert tokenizer.vocab_size == VOCABULARY
    model, folder = load_config(LIFE, SIZES).model, place / "published"
    folder.mkdir()
    save_backbone(folder, model, Model(backbone_config(model)).init(jax.random.key(5)))
    (folder / "tokenizer.json").write_text(json.dumps(hf_tokenizer(tokenizer)))
    (folder / "tokenizer_config.json").write_text(json.dumps(hf_tokenizer_config(LENGTH)))
    return place


@pytest.mark.parametrize(
    ("argument", "eos", "days"),
    [("1,{}", 2, 1), ("200,{}", 2, 10), ("200/1,{}", 2, 1), ("1,{},3", 3, 1)],
)
def test_the_experiment_takes_any_published_backbone(place, tmp_path, argument, eos, days):
    folder = tmp_path / "published"
    shutil.copytree(place / "published", folder)
    plain = load_config(f"{EXPERIMENT}:{argument.format(folder)}", [])
    assert (plain.backbone, plain.chat, plain.days) == (str(folder), False, days)
    assert plain.model.vocab_size == VOCABULARY
    if eos == 2:
        check(plain)
    else:  # the id of no special token
        with pytest.raises(ConfigError, match=r"model\.eos = 3"):
            check(plain)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    chat = load_config(f"{EXPERIMENT}:{argument.format(folder)}", [])
    assert (chat.chat, chat.model.eos) == (True, eos)
    check(chat)


def test_what_ends_a_text_is_said_as_a_number(place):
    with pytest.raises(ConfigError, match="config = '<end>': must be the id of the token"):
        load_config(f"{EXPERIMENT}:1,{place / 'published'},<end>", [])


def test_a_tokenizer_that_writes_tokens_which_the_model_has_not_is_one_line(place):
    """As of a model whose embeddings were not resized: they would be read as its last token."""
    world = f"--config.world=passages:{place / 'mine.jsonl'}"
    config = load_config(f"{EXPERIMENT}:1,{place / 'published'}", [world])
    assert prepare(config).days
    small = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=280))
    with pytest.raises(
        ConfigError, match=r"model.vocab_size = 280: the tokenizer writes '.*as tok"
    ):
        prepare(small)


@pytest.fixture(scope="module")
def lived(place, tiny_encoder):
    """The same directory after two learners' lives in it, of one day and one passage each."""
    settings = {
        "world": f"passages:{place / 'mine.jsonl'}",
        "backbone": place / "published",
        "days": 1,
        "facts_per_day": 1,
        "seeds": 2,
        "answer_tokens": 16,
        "score_judge": True,
        "sleep.judge_threshold": 0.5,
        "arms": "['sft_all','dream']",
        "baselines.sft_learning_rate": 0.03,
        "model.levels[0].night": STEPS,
        "day.steps": STEPS,
        "day.length": LENGTH,
        "pretrain.length": LENGTH,
        "schedule.when": "day_end",
        **{f"dream.{name}": value for name, value in DREAM.items()},
    }
    arguments = [*SIZES, *(f"--config.{name}={value}" for name, value in settings.items())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sleeplm.bench.retention.minilm_folder", lambda: None)
        patch.setattr("sleeplm.bench.textscores.minilm", lambda: tiny_encoder)
        arguments = ["run", LIFE, "--workdir", str(place / "run"), "--quiet", *arguments]
        assert cli.main(arguments) == 0
    return place


def scores_by_hand(place, said, world_seed):
    (passage,) = [read_passages(str(place / "mine.jsonl"))[world_seed]]
    pairs = list(zip(said, passage.questions, strict=True))
    return {
        "em": np.mean([exact_match(text, question.answers) for text, question in pairs]),
        "f1": np.mean([token_f1(text, question.answers) for text, question in pairs]),
    }


@pytest.mark.slow
def test_what_is_said_is_scored_against_the_passage_that_each_learner_read(lived):
    results = json.loads((lived / "run" / "results.json").read_text())
    exams = [r for r in read_metrics(lived / "run" / "metrics.jsonl") if r["event"] == "exam"]
    assert {(r["stage"], r["when"]) for r in exams} == {
        ("sft_all", "dusk"),
        ("dream", "dusk"),
        ("dream", "dawn"),
    }
    for record in exams:
        assert [len(texts) for texts in record["said"]] == [2, 1]
        for e, said in enumerate(record["said"]):
            wanted = scores_by_hand(lived, said, world_seed=e)
            assert record["em"][e] == [pytest.approx(wanted["em"])]
            assert record["f1"][e] == [pytest.approx(wanted["f1"])]
            assert record["f1"][e] >= record["em"][e]
    last = {r["stage"]: r for r in exams}
    for name, learners in results["arms"].items():
        for e, learner in enumerate(learners):
            assert (learner["seed"], learner["world_seed"]) == (e, e)
            for score in ("em", "f1", "judged"):
                assert learner[score] == [last[name][score][e]]
                assert len(learner[f"{score}_start"]) == 1
    assert results["world"]["passages_per_day"] == [1]


@pytest.mark.slow
def test_a_passage_can_be_dreamt_of_on_a_published_backbone(lived):
    results = json.loads((lived / "run" / "results.json").read_text())
    for learner in results["arms"]["dream"]:
        (night,) = learner["dreams"]
        (told,) = night["rounds"]
        assert told["unique"] > 0 and told["accepted"] == 1.0 and np.isfinite(told["lift_held"])
        assert night["absorbed"] + night["undone"] == 1.0


@pytest.mark.slow
def test_what_has_been_read_can_be_said_and_its_score_is_above_that_of_before(lived):
    results = json.loads((lived / "run" / "results.json").read_text())
    for learner in results["arms"]["sft_all"]:
        assert learner["f1"][-1][0] > 0.2 > learner["f1_start"][0]


@pytest.mark.slow
def test_the_report_has_scores_after_the_last_night_beside_those_before_life(lived):
    results = json.loads((lived / "run" / "results.json").read_text())
    report = json.loads((lived / "run" / "report.json").read_text())
    for name, learners in results["arms"].items():
        figures = report["arms"][name]["figures"]
        for score in ("em", "f1", "judged"):
            last = [np.mean(learner[score][-1]) for learner in learners]
            start = [np.mean(learner[f"{score}_start"]) for learner in learners]
            assert figures[f"{score}_last"]["mean"] == pytest.approx(np.mean(last))
            assert figures[f"{score}_last"]["interval"] == "over seeds"
            assert figures[f"{score}_start"]["mean"] == pytest.approx(np.mean(start))
    assert "f1_last" in report["difference"]["sft_all_minus_dream"]
    assert "f1_start" not in report["difference"]["sft_all_minus_dream"]
    assert "Answers as text" in (lived / "run" / "report.md").read_text()
