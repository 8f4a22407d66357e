"""What a cosine of sentences can tell apart: ``python -m sleeplm.bench.calibrate_judge``.

Pairs of texts whose truth is known: two wordings of one fact mean the same; the same wording with
another value does not. A threshold is chosen on half of the relations of both worlds, and its
errors are counted on the other half.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np

from sleeplm.data.atlas import atlas
from sleeplm.data.biographies import biographies
from sleeplm.data.facts import Fact, World, filled
from sleeplm.methods.judges import names_agree
from sleeplm.models.encoder import SentenceEncoder, similarity
from sleeplm.pretrained.minilm import minilm

#: What is paired with a statement of a fact. Only the first means the same.
KINDS = {
    "same": "the same fact, another wording",
    "value": "another value, the same wording",
    "value_reworded": "another value, another wording",
    "relation": "another relation of the same subject",
    "subject": "the same relation of another subject",
}
FACTS = 40  # of each relation, at most
Z0 = 8  # the usual largest edit distance that earns a surface reward
Pair = tuple[str, str]


def halves(world: World) -> tuple[list[str], list[str]]:
    """The relations to calibrate on, and those to test on: every other one."""
    names = sorted(world.relations)
    return names[::2], names[1::2]


def pairs_of(
    world: World, relations: Sequence[str], seed: int = 0, bare: bool = False
) -> dict[str, list[Pair]]:
    """Pairs of each kind, about facts of these relations; see :data:`KINDS`.

    Args:
      bare: what follows the subject only, in wordings that begin with it: what a student that
        continues a subject adds to it.
    """
    rng = random.Random(f"pairs {seed}")
    facts = {name: [f for f in world.facts if f.relation == name] for name in relations}
    of_subject: dict[str, list[Fact]] = {}
    for fact in (f for name in relations for f in facts[name]):
        of_subject.setdefault(fact.subject, []).append(fact)
    out: dict[str, list[Pair]] = {kind: [] for kind in KINDS}
    for name in relations:
        wordings = _wordings(world, name, bare)
        for fact in rng.sample(facts[name], min(FACTS, len(facts[name]))):
            first, second = rng.sample(wordings, 2)
            values = sorted({f.value for f in facts[name]} - {fact.value})
            wrong = Fact(fact.subject, name, rng.choice(values))
            told = _tell(first, fact)
            out["same"].append((_tell(second, fact), told))
            out["value"].append((_tell(first, wrong), told))
            out["value_reworded"].append((_tell(second, wrong), told))
            others = [f for f in of_subject[fact.subject] if f.relation != name]
            if others:
                other = rng.choice(others)
                wording = rng.choice(_wordings(world, other.relation, bare))
                out["relation"].append((_tell(wording, other), told))
            if not bare:
                stranger = rng.choice([f for f in facts[name] if f.value != fact.value])
                out["subject"].append((_tell(first, stranger), told))
    return {kind: pairs for kind, pairs in out.items() if pairs}


def _wordings(world: World, name: str, bare: bool) -> list[str]:
    relation = world.relations[name]
    every = relation.statements + relation.held_out_statements
    return [w.removeprefix("{s}") for w in every if w.startswith("{s}")] if bare else list(every)


def _tell(wording: str, fact: Fact) -> str:
    return filled(wording, fact).strip()


def cosines(encoder: SentenceEncoder, pairs: Mapping[str, Sequence[Pair]]) -> dict[str, np.ndarray]:
    """float32 cosine of every pair, by kind."""
    flat = [pair for kind in pairs for pair in pairs[kind]]
    found = similarity(encoder, [a for a, _ in flat], [b for _, b in flat])
    ends = np.cumsum([len(pairs[kind]) for kind in pairs])[:-1]
    return dict(zip(pairs, np.split(found, ends), strict=True))


def accepted(scores: Mapping[str, np.ndarray], threshold: float) -> dict[str, float]:
    """Share of the pairs of each kind that a judge with that threshold accepts."""
    return {kind: float((score >= threshold).mean()) for kind, score in scores.items()}


def best_threshold(scores: Mapping[str, np.ndarray]) -> float:
    """Where acceptance of the same meaning exceeds that of the other kinds, on average, most."""

    def gain(threshold: float) -> float:
        rates = accepted(scores, threshold)
        wrong = [rate for kind, rate in rates.items() if kind != "same"]
        return rates["same"] - float(np.mean(wrong))

    grid = [round(0.01 * i, 2) for i in range(30, 100)]
    return max(grid, key=gain)


def area(same: np.ndarray, other: np.ndarray) -> float:
    """Area under the ROC: how often the same meaning has the larger cosine than another one."""
    above = (same[:, None] > other[None]).mean() + 0.5 * (same[:, None] == other[None]).mean()
    return float(above)


def distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Edit distance of two lists."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def near(encoder: SentenceEncoder, pairs: Sequence[Pair], z0: int = Z0) -> np.ndarray:
    """bool of each pair: are the texts at most ``z0`` edits of word pieces apart?"""
    sides = [encoder.pieces([pair[i] for pair in pairs]) for i in (0, 1)]
    return np.asarray([distance(a, b) <= z0 for a, b in zip(*sides, strict=True)])


def main() -> None:
    """Prints rates of acceptance by threshold and kind, for both halves of the relations."""
    encoder = minilm()
    worlds = {"atlas": atlas(0, 1, 60), "biographies": biographies(0, 1, 60)}
    for bare in (False, True):
        print(f"\n== {'what follows the subject' if bare else 'whole sentences'} ==")
        halves_of = {name: halves(world) for name, world in worlds.items()}
        found = [
            {name: pairs_of(worlds[name], halves_of[name][half], bare=bare) for name in worlds}
            for half in (0, 1)
        ]
        scores = [{name: cosines(encoder, pairs) for name, pairs in part.items()} for part in found]
        kinds = [kind for kind in KINDS if kind in scores[0]["atlas"]]
        joined = {k: np.concatenate([scores[0][name][k] for name in worlds]) for k in kinds}
        threshold = best_threshold(joined)
        print(f"threshold chosen on the first half of the relations: {threshold}")
        for half, title in enumerate(("calibration", "test")):
            for name in worlds:
                print(f"\n{title}, {name}: relations {', '.join(halves_of[name][half])}")
                _table(encoder, found[half][name], scores[half][name], threshold)
        if not bare:
            _by_relation(encoder, worlds, threshold)


def _by_relation(encoder: SentenceEncoder, worlds: Mapping[str, World], threshold: float) -> None:
    print(f"\naccepted at {threshold}, by relation: same, value; ROC area; an example of a value")
    for world in worlds.values():
        for name in sorted(world.relations):
            pairs = pairs_of(world, [name])
            scores = cosines(encoder, {kind: pairs[kind] for kind in ("same", "value")})
            rates = accepted(scores, threshold)
            print(
                f"{name:14} {rates['same']:.3f} {rates['value']:.3f}  "
                f"{area(scores['same'], scores['value']):.3f}  {pairs['value'][0][0]}"
            )


def _table(
    encoder: SentenceEncoder,
    pairs: Mapping[str, Sequence[Pair]],
    scores: Mapping[str, np.ndarray],
    threshold: float,
) -> None:
    print(f"{'':16}" + "".join(f"{kind:>16}" for kind in scores))

    def line(title: str, values: Mapping[str, float]) -> None:
        print(f"{title:16}" + "".join(f"{values[kind]:16.3f}" for kind in scores))

    print(f"{'pairs':16}" + "".join(f"{len(score):16d}" for score in scores.values()))
    line("median cosine", {kind: float(np.median(score)) for kind, score in scores.items()})
    line("ROC area", {kind: area(scores["same"], score) for kind, score in scores.items()})
    for at in (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98):
        line(f"accepted {at}", accepted(scores, at))
    line(f"chosen {threshold}", accepted(scores, threshold))
    rules = {
        f"and z <= {Z0}": {kind: near(encoder, pairs[kind]) for kind in scores},
        "and same names": {
            kind: np.asarray([names_agree(*pair) for pair in pairs[kind]]) for kind in scores
        },
    }
    for title, holds in rules.items():
        both = {kind: (score >= threshold) & holds[kind] for kind, score in scores.items()}
        line(title, {kind: float(one.mean()) for kind, one in both.items()})


if __name__ == "__main__":
    main()
