"""A real pretrained model on a laptop: SmolLM2-135M lives four days, with a night after each.

The days are facts of the atlas, told as sentences and asked in chats, or CLINC150 by domain. Arms:
``sleep``, the same days without nights, and one LoRA, as people do today. Needs two packages, see
docs/pretrained.md; ``general`` is plain text that tells what else the model still reads well.

    sleeplm run experiments/smollm2.py --config.general=FILE
    sleeplm run experiments/smollm2.py:clinc150 --config.general=FILE --config.data_dir=DIR
    sleeplm run experiments/smollm2.py --quick

What it costs and what to expect is in docs/pretrained.md.
"""

import dataclasses

from sleeplm.bench.presets import UNSEEN, night
from sleeplm.bench.retention import DayConfig, RetentionConfig
from sleeplm.bench.worlds import has_facts, has_passages
from sleeplm.core.checks import require
from sleeplm.methods.config import TeacherConfig
from sleeplm.methods.schedule import ScheduleConfig
from sleeplm.pretrained.grafts import cheap
from sleeplm.pretrained.published import SMOLLM2, find_backbone

END_OF_TEXT = 0  # <|endoftext|>; what ends a turn ends no text
CHUNK = 8  # wake steps of a compiled call


def get_config(world: str = "atlas") -> RetentionConfig:
    """Four days of 12 facts, or of 15 intents.

    Args:
      world: of facts, or of labelled texts.
    """
    asked = RetentionConfig(world=world)
    remedy = "is of passages to read: run experiments/squad.py"
    require(not has_passages(asked), "config", world, remedy)
    facts = has_facts(asked)
    found = find_backbone(SMOLLM2, max_len=64).config
    backbone = dataclasses.replace(found, eos=END_OF_TEXT, scan_layers=True)
    today = [
        TeacherConfig("dusk", "today", uncued=0.4 if facts else 0.0, times=2),
        # Labelled texts begin with their cue: frames would find nothing to cut.
        TeacherConfig("dusk", "today", imitate=False, framed=facts, times=2),
    ]
    before = [
        TeacherConfig("dawn", "past", weight=2.0, imitate=False, uncued=0.2, times=2),
        TeacherConfig("origin", "before", weight=2.0, imitate=False, uncued=0.5),
    ]
    return RetentionConfig(
        world=world,
        days=4,
        facts_per_day=12,
        wear=0.0,
        exam_pretrain=12,
        exam_per_day=0 if facts else 30,
        backbone=SMOLLM2,
        chat=True,
        general_tokens=2048,
        seed=UNSEEN,
        world_seed=UNSEEN,
        arms=["sleep", "wake_only", "lora_sequential"],
        probes=False,
        model=cheap(backbone, day=CHUNK, slots=4, rank=32, learning_rate=1e-3),
        # A day of labelled texts is as long as its steps, not read through.
        day=DayConfig(
            steps=CHUNK if facts else 64,
            epochs=3.0 if facts else 0.0,
            batch=8,
            length=64,
            chunk=CHUNK,
        ),
        schedule=ScheduleConfig(when="day_end"),
        night_facts=12,
        sleep=night(
            teachers=[*today, *before],
            updates=96,
            rows=4,
            inner=16,
            learning_rate=2e-2,
            epochs=2,
            temperature=1.0 if facts else 0.5,
            length=32 if facts else 48,
            pack=40 if facts else 72,
        ),
    )


def get_quick_config(world: str = "atlas") -> RetentionConfig:
    """Two days of four facts, read twice as often, and nights of half as many rows."""
    config = get_config(world)
    return dataclasses.replace(
        config,
        days=2,
        facts_per_day=4,
        night_facts=4,
        exam_pretrain=4,
        exam_per_day=min(config.exam_per_day, 8),
        general_tokens=512,
        arms=["sleep", "wake_only"],
        day=dataclasses.replace(config.day, steps=CHUNK, epochs=2 * config.day.epochs),
        sleep=dataclasses.replace(config.sleep, rows=2),
    )
