"""Class-incremental intents: CLINC150 by domain, ten days of fifteen intents (TFDS).

The label is generated as text, no day is named in the exam. Arms: ``sleep`` against one LoRA, EWC,
and training on all days at once (``joint``); ``inca`` is an external classifier on the frozen
backbone.

    sleeplm run experiments/retention_intents.py --config.data_dir=DIR --config.text=FILE
    sleeplm run experiments/retention_intents.py:banking77 --config.manual_dir=DIR
    sleeplm run experiments/retention_intents.py --config.world=labels:DIR --config.days=5

``text`` is plain English to pretrain on (.txt, or JSON lines with "text", also .gz): without it the
backbone has read the atlas facts only, and accuracy is lower. What to expect is in docs/results.md.
"""

import dataclasses

from sleeplm.bench.presets import UNSEEN, bench, night
from sleeplm.bench.retention import RetentionConfig
from sleeplm.methods.config import TeacherConfig
from sleeplm.methods.pretrain import PretrainConfig


def get_config(world: str = "clinc150") -> RetentionConfig:
    """All days of a labelled data set, a sample of its test rows after each.

    The fast level is wider than for facts and learns more slowly, from more readings.
    """
    config = bench(
        world=world,
        days=0,
        steps=180,
        epochs=10.0,
        slots=10,
        length=64,
        # Prose is more to learn than a world of facts: longer than the other experiments.
        pretrain=PretrainConfig(steps=6000, batch=16, length=64, chunk=20),
        seed=UNSEEN,
        world_seed=UNSEEN,
        seeds=3,
        arms=["sleep", "lora_sequential", "ewc", "joint", "wake_only", "inca"],
        exam_per_day=150,
        sleep=night(
            # Labelled texts begin with their cue: none is without, and frames would find nothing
            # to cut. At a temperature of 1 a small model's texts are too unlike real ones.
            teachers=[
                TeacherConfig("dusk", "today", weight=2.0, times=2),
                TeacherConfig("dawn", "lived", weight=2.0, imitate=False, times=2),
                TeacherConfig("origin", "before", imitate=False, uncued=0.2),
            ],
            temperature=0.5,
            updates=768,
            epochs=2,
            length=64,
            pack=96,
            reservoir=1024,
        ),
    )
    fast, slow = config.model.levels
    fast = dataclasses.replace(fast, width=256, learning_rate=1e-3)
    model = dataclasses.replace(config.model, levels=[fast, slow])
    return dataclasses.replace(config, model=model)
