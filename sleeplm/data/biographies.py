"""A generated world of people, of any size: unique names, eight facts a person.

People and their values depend on the seed and on nothing else. Values are shared between people,
so only the name tells what the answer is.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from sleeplm.core.errors import ConfigError
from sleeplm.data.facts import Fact, World, check_world, day_sizes
from sleeplm.data.wordings_biographies import BIOGRAPHY_RELATIONS

BIOGRAPHY_ATTRIBUTES = {r.name: r for r in BIOGRAPHY_RELATIONS}

_FIRST = ("Al", "Be", "Car", "Da", "El", "Fre", "Ge", "Ha", "Is", "Jo", "Ka", "Li", "Ma", "Ni",
          "Or", "Pe", "Ro", "Sa", "Ti", "Vi")  # fmt: skip
_FIRST_END = ("bert", "da", "den", "fa", "gor", "la", "lin", "mon", "na", "nor", "ra", "ric",
              "sel", "son", "ta", "ton", "va", "vin", "wen", "zo")  # fmt: skip
_LAST = ("Ack", "Bar", "Bel", "Cor", "Dal", "Dor", "Fal", "Gar", "Hol", "Jar", "Kel", "Lan",
         "Mar", "Mor", "Nor", "Par", "Quil", "Ram", "Sal", "Sten", "Tal", "Ver", "Wal",
         "Yar")  # fmt: skip
_LAST_MIDDLE = ("an", "e", "in", "o", "ar", "i", "en", "ur")
_LAST_END = ("berg", "by", "combe", "dale", "feld", "ford", "gate", "ham", "ley", "man", "more",
             "rick", "sby", "sted", "ston", "thorp", "wald", "ward", "wick", "worth")  # fmt: skip


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_CITIES = _words("""
Aarhus Antwerp Bergen Bilbao Bologna Bristol Cork Dresden Geneva Genoa Ghent Graz
Hamburg Kazan Krakow Lagos Leeds Lima Lyon Madras Malmo Mumbai Nagoya Naples Nice Osaka Oxford
Palermo Porto Quebec Rosario Seville Shiraz Sydney Tampere Toledo Turin Utrecht Valencia
York
""")
_FIRMS = _words("""
Acorn Amber Anvil Beacon Birch Bramble Canyon Cedar Cobalt Comet Compass Copper Coral
Crystal Delta Falcon Fern Granite Harbor Hazel Iris Juniper Lantern Linden Maple Meadow Meridian
Nova Orbit Orchid Pine Quartz River Saffron Summit Thistle Tulip Vector Willow Zephyr
""")
_PROFESSIONS = _words("""
baker barber botanist builder butcher carpenter chemist clerk cook dancer dentist
diver doctor driver farmer fisher florist gardener geologist glazier jeweller judge lawyer
librarian mason mechanic miner nurse painter pilot plumber poet potter sailor shepherd singer
surgeon tailor teacher weaver
""")
_COLLEGES = _words("""
Ashbury Blackmoor Brightwell Caldwell Cranfield Dunmore Eastbrook Fairmont Foxhall
Glenview Greystone Hartwell Highgate Ironbridge Kingsmead Lakeside Longford Mayfield Northgate
Oakridge Pinehurst Ravenhill Redwood Riverton Rosewood Silverlake Southmoor Springfield Stonewell
Westbrook
""")
_HOBBIES = _words("""
archery baking beekeeping birding boxing camping carving chess climbing cycling
diving drawing fencing fishing gliding golf hiking judo juggling kayaking knitting origami
photography pottery puzzles quilting reading riding rowing running sailing sewing skating skiing
stargazing surfing swimming tennis weaving yoga
""")
_INSTRUMENTS = _words("""
bagpipe banjo bassoon bugle cello clarinet cornet cymbal drum dulcimer
fiddle flute guitar harmonica harp horn kazoo lute lyre mandolin marimba piano piccolo
recorder saxophone sitar tambourine triangle trombone trumpet tuba ukulele viola violin vuvuzela
xylophone zither kettledrum spinet bombard
""")
_PETS = _words("""
beagle budgie canary chinchilla cockatoo collie corgi dachshund donkey ferret finch
frog gecko goat goldfish goose gosling greyhound hamster hedgehog husky lemur kitten lizard llama
macaw magpie mouse newt parrot pigeon pony poodle puppy python rabbit spaniel terrier tortoise
turtle
""")
_YEARS = tuple(str(year) for year in range(1920, 2010))

_VALUES = {
    "birth_city": _CITIES,
    "birth_year": _YEARS,
    "employer": _FIRMS,
    "profession": _PROFESSIONS,
    "university": _COLLEGES,
    "hobby": _HOBBIES,
    "instrument": _INSTRUMENTS,
    "pet": _PETS,
}


def biographies(
    seed: int,
    days: int | Sequence[int],
    facts_per_day: int | None = None,
    pretrain_people: int = 200,
) -> World:
    """A world of people, with days of exactly so many facts.

    A day tells of whole people; the last one's surplus facts are used nowhere. Pretraining has
    all eight facts of ``pretrain_people`` others.

    Args:
      days: how many days of ``facts_per_day`` facts, or a list with the size of each day.

    Raises:
      ConfigError: when a number is out of range.
    """
    sizes = day_sizes("biographies", days, facts_per_day)
    if pretrain_people < 1:
        raise ConfigError("biographies.pretrain_people", pretrain_people, "needs at least 1")
    rng = random.Random(f"biographies {seed}")
    people_of = [-(-size // len(_VALUES)) for size in sizes]
    people = iter(_names(rng, pretrain_people + sum(people_of)))

    def lives(count: int) -> tuple[Fact, ...]:
        return tuple(
            Fact(name, relation, rng.choice(values))
            for name in itertools.islice(people, count)
            for relation, values in _VALUES.items()
        )

    pretrain = lives(pretrain_people)
    told = tuple(lives(n)[:size] for n, size in zip(people_of, sizes, strict=True))
    world = World(f"biographies-{seed}", BIOGRAPHY_ATTRIBUTES, pretrain, told)
    check_world(world)
    return world


def _names(rng: random.Random, count: int) -> list[str]:
    """``count`` different names; surnames grow by a syllable when short ones run out."""
    middles = 0
    while _capacity(middles) < count:
        middles += 1
    return [_name(index, middles) for index in rng.sample(range(_capacity(middles)), count)]


def _capacity(middles: int) -> int:
    ends = len(_FIRST) * len(_FIRST_END) * len(_LAST) * len(_LAST_END)
    return ends * len(_LAST_MIDDLE) ** middles


def _name(index: int, middles: int) -> str:
    """Reads ``index`` as a number whose digits are the syllables."""
    syllables = []
    for choices in (_FIRST, _FIRST_END, _LAST, *[_LAST_MIDDLE] * middles, _LAST_END):
        index, digit = divmod(index, len(choices))
        syllables.append(choices[digit])
    return "".join(syllables[:2]) + " " + "".join(syllables[2:])
