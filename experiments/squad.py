"""Knowledge incorporation (SEAL's protocol): read passages of SQuAD, sleep, answer without them.

``N`` is how many passages are read: 1 (every learner one of its own, in one day) or a multiple of
ten (all learners the same ones, over ten days with a night after each); ``N/DAYS`` says over how
many days, ``200/1`` all in one, as SEAL does. Arms: ``wake_only``, one LoRA, and ``sleep``; what
the model says before it has read anything is reported beside them.

    sleeplm run experiments/squad.py:1 --config.world=passages:eval200.jsonl
    sleeplm run experiments/squad.py:200 --config.world=passages:eval200.jsonl
    sleeplm run experiments/squad.py:200/1 --config.world=passages:eval200.jsonl
    sleeplm run experiments/squad.py:1,FOLDER --config.data_dir=DIR
    sleeplm run experiments/squad.py:1 --config.arms="['dream']" --config.world=passages:FILE
    sleeplm run experiments/squad.py:1 --quick --config.world=passages:eval200.jsonl

``FOLDER`` is another backbone: a Hugging Face folder (Llama, Qwen3) or a GGUF file. What ends its
texts is found by its name; ``N,FOLDER,ID`` says it. Without ``world``, TFDS brings SQuAD's
validation split. The protocol and what is measured: docs/squad.md.
"""

import dataclasses

from sleeplm.bench.presets import night
from sleeplm.bench.retention import DayConfig, RetentionConfig
from sleeplm.core.checks import require
from sleeplm.core.errors import ConfigError
from sleeplm.methods.config import TeacherConfig
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.pretrain import PretrainConfig
from sleeplm.methods.schedule import ScheduleConfig
from sleeplm.pretrained.grafts import cheap
from sleeplm.pretrained.published import SMOLLM2, find_backbone

DAYS = 10  # of more passages than one
ROW = 96  # tokens of a piece of a passage
MAX_LEN = 192  # tokens of a question with its answer, or of a piece and what is dreamt of it
#: SEAL's words, without which models that chat answer in whole sentences.
ASK = "Let's answer a question directly and concisely.\nQuestion: {q}\nAnswer:"
#: For SmolLM2, which answers these words in sentences, and mostly about something else: it is
#: asked in running text, behind three answers of the right length about nothing that is read.
SHOTS = """Question: What is the capital of France?
Answer: Paris
Question: In which year did the First World War begin?
Answer: 1914
Question: Who wrote Hamlet?
Answer: William Shakespeare
Question: {q}
Answer:"""


def get_config(argument: str = "1") -> RetentionConfig:
    """``N``, ``N,BACKBONE`` or ``N,BACKBONE,EOS``; ``N/DAYS`` in place of ``N``."""
    parts = argument.split(",")
    require(len(parts) <= 3, "config", argument, "must be N, N,BACKBONE or N,BACKBONE,EOS")
    count, backbone, eos = [*parts, "", ""][:3]
    days, passages = _days(count)
    one = days == passages == 1
    if eos and not eos.isdigit():
        raise ConfigError("config", eos, "must be the id of the token that ends a text")
    found = find_backbone(backbone or SMOLLM2, max_len=MAX_LEN)
    tokenizer = found.read_tokenizer()
    small = (backbone or SMOLLM2) == SMOLLM2
    talks = tokenizer.chat_template is not None
    ends = tokenizer.end_of_text if talks else found.config.eos
    model = cheap(
        dataclasses.replace(found.config, eos=int(eos or ends), scan_layers=True),
        day=12,
        slots=days,
        rank=32,
        learning_rate=5e-4,
    )
    teachers = [
        TeacherConfig("dusk", "today", times=2),
        TeacherConfig("origin", "before", weight=2.0, imitate=False, uncued=0.5),
    ]
    # Dreams, for the arms that have them: five a passage, as SEAL writes self-edits, all tried.
    dream = DreamConfig(
        dreams=5 * passages,
        context_tokens=ROW + 32,  # and what asks for the dream
        new_tokens=48,
        temperature=0.5,
        contexts=5 * passages,
        formats=["implication", "rewrite"],
        alone=True,
        keep=5 * passages,
        extra=0,
        agree="own",
        learning_rate=1e-4,
        at_once=5,
        memories=16 if days > 1 else 0,
        rounds=1,
        reinforce=False,
        updates=32,
        inner=16,
        rows=4,
    )
    if days > 1:
        teachers.append(TeacherConfig("dawn", "past", weight=2.0, imitate=False, times=2))
    return RetentionConfig(
        world="squad",
        days=days,
        facts_per_day=passages,
        wear=0.0,
        statements=1,
        questions=1,
        exam_pretrain=12,
        ask=SHOTS if small else ASK,
        answer_tokens=32,
        backbone=backbone or SMOLLM2,
        chat=talks and not small,
        dream_chat=talks,
        general_tokens=2048,
        seeds=8 if one else 1,
        arms=["wake_only", "lora_sequential", "sleep"],
        probes=False,
        model=model,
        # Nothing is pretrained: this is for what "known" facts are told in.
        pretrain=PretrainConfig(length=MAX_LEN),
        day=DayConfig(steps=12, epochs=12.0 if one else 6.0, batch=4, length=ROW, chunk=4),
        schedule=ScheduleConfig(when="day_end"),
        dream=dream,
        sleep=night(
            teachers=teachers,
            updates=48 if one else 96 if days > 1 else 192,
            rows=4,
            inner=16,
            learning_rate=1e-2,
            temperature=0.5,
            length=ROW,
            pack=0,
            cue_tokens=16,
            reservoir=512 if one else 2048,  # room for every piece of 200 passages
        ),
    )


def get_quick_config(argument: str = "1") -> RetentionConfig:
    """The same in minutes: one learner, two questions a day, nights of a few updates."""
    config = get_config(argument)
    return dataclasses.replace(
        config,
        seeds=1,
        exam_per_day=2,
        exam_pretrain=2,
        answer_tokens=8,
        arms=["wake_only", "sleep"],
        day=dataclasses.replace(config.day, epochs=0.0, steps=4),
        sleep=dataclasses.replace(config.sleep, updates=4, inner=4),
    )


def _days(count: str) -> tuple[int, int]:
    """Days, and passages of each."""
    number, slash, over = count.partition("/")
    read = int(number) if number.isdigit() else 0
    days = int(over) if over.isdigit() else 0
    if not slash:
        days = 1 if read == 1 else DAYS
    if min(read, days) <= 0 or read % days:
        remedy = f"must be 1, a multiple of {DAYS} such as 200, or N/DAYS such as 200/1"
        raise ConfigError("config", count, remedy)
    return days, read // days
