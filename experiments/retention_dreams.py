"""Does dreaming help? Days that tell every fact in three statements and ask nothing.

By day nothing is asked, in exams all is: what a learner lacks is the day's facts in other words.
Before life the backbone has seen, on invented facts, how a text is turned into a question with its
answer, and into other words. Asleep it consolidates, then writes such texts about the day, tries
them, and learns those that agree with the rest of the day. Arms: ``sleep``, ``sleep_longer`` (as
many more updates as dreaming costs), ``dream``; by name also ``dream`` with one part left out.

    sleeplm run experiments/retention_dreams.py
    sleeplm run experiments/retention_dreams.py:biographies --config.arms="['sleep','dream']"
    sleeplm run experiments/retention_dreams.py:two_facts
    sleeplm run experiments/retention_dreams.py --config.falsehoods=0.05

What to expect is in docs/dreaming.md.
"""

from sleeplm.bench.presets import UNSEEN, bench, dreams, night
from sleeplm.bench.retention import RetentionConfig
from sleeplm.core.checks import require
from sleeplm.methods.pretrain import PretrainConfig


def get_config(world: str = "atlas") -> RetentionConfig:
    """Four days of 60 facts in three statements each; a backbone that has read for longer.

    Args:
      world: of facts; or ``two_facts``: atlas, whose exams need two facts for an answer.
    """
    two = world == "two_facts"
    known = world.partition(":")[0] in ("atlas", "biographies", "facts", "two_facts")
    remedy = "must be two_facts or a world of facts: atlas, biographies, facts:FILE.jsonl"
    require(known, "config", world, remedy)
    formats = ["question", "implication"] if two else ["question", "rewrite"]
    length = 96 if two else 64  # an implication stands behind two statements
    return bench(
        world="atlas" if two else world,
        days=4,
        facts_per_day=60,
        slots=4,
        length=length,
        day_statements=3,
        day_questions=0,
        formats=formats,
        format_examples=4,
        exam_facts=2 if two else 1,
        epochs=20.0,
        pretrain=PretrainConfig(steps=7000, batch=16, length=length, chunk=20),
        night_facts=60,
        sleep=night(updates=240),
        dream=dreams(
            dreams=120,
            context_tokens=40 if two else 32,
            new_tokens=40 if two else 24,
            contexts=120,
            formats=formats if two else ["question"],
            alone=True,
            temperature=0.5,
            keep=72,
            extra=8,
            agree="own",
            rounds=2,
            updates=96,
        ),
        seed=UNSEEN,
        world_seed=UNSEEN,
        arms=["sleep", "sleep_longer", "dream"],
    )
