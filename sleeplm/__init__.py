"""Language models that keep learning after they ship, in pure-functional JAX.

Rooms, in the order in which they may import one another:

* :mod:`sleeplm.core`        contracts, losses, phases and how they compose, checks of settings
* :mod:`sleeplm.memory`      levels, experts and their slots, cues, anchors
* :mod:`sleeplm.models`      the Flax backbone, generation, grafts, the judge's sentence encoder
* :mod:`sleeplm.methods`     wake, sleep and dreams: extraction, objectives, updates; a learner
* :mod:`sleeplm.pretrained`  published backbones and tokenizers, in and out; memories as files
* :mod:`sleeplm.data`        worlds, files and public data sets as days, exams and tokens
* :mod:`sleeplm.runtime`     runs: configuration, lifecycle, checkpoints, metrics; meshes and hosts
* :mod:`sleeplm.plan`        what a learner's programs need on a pod, compiled without one
* :mod:`sleeplm.bench`       lives, their arms, exams and costs; figures and reports

``data`` and ``pretrained`` are leaves: only ``runtime``, ``bench`` and what stands on top import
them. On top stand the command line (:mod:`sleeplm.cli`, :mod:`sleeplm.arguments`) and
:mod:`sleeplm.testing`, which lets you hold a phase of your own to the laws.
"""

__version__ = "0.1.0"
