"""Language models that keep learning after they ship, in pure-functional JAX.

Rooms, in the order in which they may import one another:

* :mod:`sleeplm.core`     contracts, losses, phases and how they compose
* :mod:`sleeplm.memory`   levels, experts and their slots, cues, anchors
* :mod:`sleeplm.models`   the Flax backbone and generation
* :mod:`sleeplm.methods`  extraction, objectives, updates; wake and sleep
* :mod:`sleeplm.runtime`  runs: lifecycle, checkpoints, metrics, reports, the command line

:mod:`sleeplm.data` is a leaf; :mod:`sleeplm.testing` lets you hold a phase of your own to the laws.
"""

__version__ = "0.1.0"
