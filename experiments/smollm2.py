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
from sleeplm.methods.config import TeacherConfig
from sleeplm.methods.schedule import ScheduleConfig
from sleeplm.pretrained.grafts import cheap
from sleeplm.pretrained.published import SMOLLM2, find_backbone

END_OF_TEXT = 0  # <|endoftext|>; what ends a turn ends no text


def get_config(world: str = "atlas") -> RetentionConfig:
    """Four days of 12 facts, or of 15 intents."""
    backbone = find_backbone(SMOLLM2, max_len=64).config
    model = cheap(
        dataclasses.replace(backbone, eos=END_OF_TEXT, scan_layers=True),
        day=8,
        slots=4,
        rank=32,
        learning_rate=2e-3,
    )
    return RetentionConfig(
        world=world,
        days=4,
        facts_per_day=12,
        wear=0.0,
        exam_pretrain=12,
        backbone=SMOLLM2,
        chat=True,
        general_tokens=2048,
        seed=UNSEEN,
        world_seed=UNSEEN,
        arms=["sleep", "wake_only", "lora_sequential"],
        probes=False,
        model=model,
        day=DayConfig(steps=8, epochs=3.0, batch=8, length=64, chunk=8),
        schedule=ScheduleConfig(when="day_end"),
        night_facts=12,
        sleep=night(
            teachers=[
                TeacherConfig("dusk", "today", uncued=0.4, times=2),
                TeacherConfig("dusk", "today", imitate=False, framed=True, times=2),
                TeacherConfig("dawn", "past", weight=2.0, imitate=False, uncued=0.2, times=2),
                TeacherConfig("origin", "before", weight=2.0, imitate=False, uncued=0.5),
            ],
            updates=96,
            rows=4,
            inner=16,
            learning_rate=1e-2,
            length=40,
            pack=56,
        ),
    )
