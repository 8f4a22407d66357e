"""A world of real facts: countries (package ``countryinfo``), elements (``periodictable``).

Values are what the packages record, after cleaning:

* names and values become ASCII (accents dropped); names with other signs than letters, spaces,
  ``'``, ``.`` and ``-``, or longer than :data:`MAX_SUBJECT` characters, are dropped, and so are
  values longer than :data:`MAX_VALUE`;
* lists are facts only with exactly one entry (one currency, one calling code, one language);
* only entries with an ISO numeric code that is not withdrawn count as countries;
* give-aways are dropped, values that the subject's name tells: a word that begins like a word of
  the name ("Thai" in Thailand, "Tunis" in Tunisia), and codes that begin the name ("He", helium);
* populations are rounded to one digit, masses to whole units, densities to one decimal;
* a subject with fewer than :data:`MIN_FACTS` facts left is dropped.

The continent is no relation: days are countries of one continent, so it would be the same answer
all day. Demonyms are none either: most follow from the name.
"""

from __future__ import annotations

import functools
import random
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import periodictable
from countryinfo import CountryInfo

from sleeplm.core.errors import ConfigError
from sleeplm.data.facts import Fact, World, check_world, day_sizes
from sleeplm.data.wordings_countries import COUNTRY_RELATIONS
from sleeplm.data.wordings_elements import ELEMENT_RELATIONS

MAX_SUBJECT = 16
MAX_VALUE = 24
MIN_FACTS = 4
#: Share of each theme's facts that always stays in pretraining.
PRETRAIN_SHARE = 0.4

ATLAS_RELATIONS = {r.name: r for r in COUNTRY_RELATIONS + ELEMENT_RELATIONS}

_WITHDRAWN = {"ANT", "SCG"}  # dissolved countries that the package still lists
_CODES = {"country_code", "currency", "domain", "symbol"}
_NOBLE_GASES = (2, 10, 18, 36, 54, 86, 118)
_LATTICES = {
    "fcc": "face centred",
    "BCC": "body centred",
    "SC": "cubic",
    "hcp": "hexagonal",
    "Cubic": "cubic",
    "Diamond": "diamond",
    "Tetragonal": "tetragonal",
    "Orthorhombic": "orthorhombic",
    "Rhombohedral": "rhombohedral",
    "Monoclinic": "monoclinic",
}
#: ISO 639-1 codes of the languages that are the only one recorded for some country.
_LANGUAGES = {
    "am": "Amharic", "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "da": "Danish",
    "de": "German", "dv": "Dhivehi", "dz": "Dzongkha", "el": "Greek", "en": "English",
    "es": "Spanish", "et": "Estonian", "fa": "Persian", "fo": "Faroese", "fr": "French",
    "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "is": "Icelandic", "it": "Italian",
    "ja": "Japanese", "ka": "Georgian", "kl": "Greenlandic", "km": "Khmer", "ko": "Korean",
    "lo": "Lao", "lt": "Lithuanian", "lv": "Latvian", "mk": "Macedonian", "mn": "Mongolian",
    "ms": "Malay", "my": "Burmese", "ne": "Nepali", "nl": "Dutch", "no": "Norwegian",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak",
    "sl": "Slovene", "sq": "Albanian", "sv": "Swedish", "th": "Thai", "tr": "Turkish",
    "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


def atlas(seed: int, days: int | Sequence[int], facts_per_day: int | None = None) -> World:
    """The atlas world: days of exactly so many facts, the rest pretraining.

    A day is about countries of one continent, or about elements. Its subjects are taken whole
    until the facts suffice; the last subject's surplus facts are used nowhere. ``seed`` chooses
    which subjects go where.

    Args:
      days: how many days of ``facts_per_day`` facts, or a list with the size of each day.

    Raises:
      ConfigError: when so many facts do not fit; the message says how many days do.
    """
    sizes = day_sizes("atlas", days, facts_per_day)
    rng = random.Random(f"atlas {seed}")
    pools = {theme: list(people.items()) for theme, people in _atlas_subjects().items()}
    for pool in pools.values():
        rng.shuffle(pool)
    reserve = {theme: PRETRAIN_SHARE * _count(pool) for theme, pool in pools.items()}
    order = list(pools)
    rng.shuffle(order)
    chosen: list[tuple[Fact, ...]] = []
    while len(chosen) < len(sizes):
        before = len(chosen)
        for theme in order:
            size = sizes[len(chosen)]
            if _count(pools[theme]) - size >= reserve[theme]:
                chosen.append(_take(pools[theme], size))
            if len(chosen) == len(sizes):
                break
        if len(chosen) == before:
            raise _too_many(sizes, before)
    pretrain = tuple(f for pool in pools.values() for _, facts in pool for f in facts)
    world = World(f"atlas-{seed}", ATLAS_RELATIONS, pretrain, tuple(chosen))
    check_world(world)
    return world


def _too_many(sizes: Sequence[int], fit: int) -> ConfigError:
    if len(set(sizes)) == 1:
        remedy = f"at most {fit} days of {sizes[0]} facts fit into the atlas"
        return ConfigError("atlas.days", len(sizes), remedy)
    remedy = f"at most {fit} days of these sizes fit into the atlas (day {fit + 1}: {sizes[fit]})"
    return ConfigError("atlas.day_sizes", list(sizes), remedy)


def _count(pool: list[tuple[str, tuple[Fact, ...]]]) -> int:
    return sum(len(facts) for _, facts in pool)


def _take(pool: list[tuple[str, tuple[Fact, ...]]], wanted: int) -> tuple[Fact, ...]:
    facts: list[Fact] = []
    while len(facts) < wanted:
        facts.extend(pool.pop()[1])
    return tuple(facts[:wanted])


@functools.cache
def _atlas_subjects() -> Mapping[str, Mapping[str, tuple[Fact, ...]]]:
    """``{theme: {subject: facts}}`` after cleaning, in a fixed order."""
    themes: dict[str, dict[str, tuple[Fact, ...]]] = defaultdict(dict)
    for theme, subject, values in (*_countries(), *_elements()):
        facts = []
        for relation, raw in values.items():
            value = _clean_value(subject, relation, raw)
            if value is not None:
                facts.append(Fact(subject, relation, value))
        if len(facts) >= MIN_FACTS:
            themes[theme][subject] = tuple(facts)
    return themes


def _clean_value(subject: str, relation: str, raw: str | None) -> str | None:
    value = _ascii(raw)
    if not value or len(value) > MAX_VALUE or value.endswith("."):
        return None  # a final period would meet the sentence's own
    if relation in _CODES and _letters(subject).startswith(_letters(value)):
        return None
    return None if _is_give_away(subject, value) else value


def _is_give_away(subject: str, value: str) -> bool:
    starts = tuple(word[:4] for word in re.findall(r"[a-z]{3,}", value.lower()))
    return any(word.startswith(starts) for word in re.findall(r"[a-z]+", subject.lower()))


def _ascii(text: object) -> str | None:
    if not isinstance(text, str):
        return None
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return plain.strip() if plain.isascii() else None


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def _countries() -> Iterator[tuple[str, str, dict[str, str | None]]]:
    for _, info in sorted(CountryInfo.all().items()):
        iso = info.get("ISO") or {}
        name = _ascii(info.get("name"))
        if not name or not re.fullmatch(r"[A-Za-z][A-Za-z '.-]*", name):
            continue
        if len(name) > MAX_SUBJECT or not iso.get("numeric") or iso["alpha3"] in _WITHDRAWN:
            continue
        if info.get("region"):
            yield info["region"], name, _country_values(info, iso)


def _country_values(info: Mapping, iso: Mapping) -> dict[str, str | None]:
    language = _only(info.get("languages"))
    domain = _only([d for d in info.get("tld") or [] if d.isascii()])
    return {
        "capital": info.get("capital"),
        "subregion": _subregion(info),
        "currency": _only(info.get("currencies")),
        "language": _LANGUAGES.get(language) if language else None,
        "calling_code": re.sub(r"[^0-9]", "", _only(info.get("callingCodes")) or ""),
        "country_code": iso["alpha3"],
        "domain": domain,
        "population": _rounded(info.get("population")),
    }


def _only(values: list[str] | None) -> str | None:
    return values[0] if values and len(values) == 1 else None


def _subregion(info: Mapping) -> str | None:
    """The finest region that the package records."""
    finest = info.get("intermediateregion") or info.get("subregion")
    return finest if finest != info["region"] else None


def _rounded(number: float | None) -> str | None:
    """One leading digit in words that a small model can learn: 8527230 -> "9 million"."""
    if not number or number < 1000:
        return None
    power = 10 ** (len(str(int(number))) - 1)
    coarse = round(number / power) * power
    for size, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if coarse >= size:
            return f"{coarse // size} {word}"
    return None


def _elements() -> Iterator[tuple[str, str, dict[str, str | None]]]:
    for element in periodictable.elements:
        if element.number:  # number 0 is the neutron
            yield "Elements", element.name.capitalize(), _element_values(element)


def _element_values(element: periodictable.core.Element) -> dict[str, str | None]:
    sure = not re.search("calculated|estimated|unavailable", element.density_caveat or "")
    structure = getattr(element, "crystal_structure", None) or {}
    radius = element.covalent_radius
    group = _group(element.number)
    return {
        "symbol": element.symbol,
        "atomic_number": str(element.number),
        "atomic_mass": str(round(element.mass)),
        "period": str(_period(element.number)),
        "group": str(group) if group else None,
        "density": f"{element.density:.1f}" if element.density and sure else None,
        "crystal": _LATTICES.get(structure.get("symmetry", "")),
        "radius": f"{round(100 * radius)} pm" if radius else None,
    }


def _period(number: int) -> int:
    return 1 + sum(number > noble for noble in _NOBLE_GASES)


def _group(number: int) -> int | None:
    """Column 1 to 18 of the periodic table; None in the f block (57-70, 89-102)."""
    if 57 <= number <= 70 or 89 <= number <= 102:
        return None
    noble = next(n for n in _NOBLE_GASES if n >= number)
    start = noble - _period_length(noble)
    column = number - start
    if number == noble:
        return 18
    return column if column <= 2 else 18 - (noble - number)


def _period_length(noble: int) -> int:
    index = _NOBLE_GASES.index(noble)
    return noble - (_NOBLE_GASES[index - 1] if index else 0)
