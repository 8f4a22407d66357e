"""The atlas: real facts, cleaned."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from countryinfo import CountryInfo

from sleeplm.core.errors import ConfigError
from sleeplm.data.atlas import MAX_SUBJECT, MAX_VALUE, atlas
from sleeplm.data.facts import Fact, subjects

WHOLE = atlas(0, 0, 80)


def test_it_has_about_two_thousand_facts():
    assert 1_900 <= len(WHOLE.pretrain) <= 2_400


def test_it_knows_the_world():
    known = set(WHOLE.pretrain)
    for fact in (
        Fact("Austria", "capital", "Vienna"),
        Fact("Austria", "calling_code", "43"),
        Fact("Japan", "currency", "JPY"),
        Fact("Brazil", "capital", "Brasilia"),
        Fact("Jamaica", "subregion", "Caribbean"),
        Fact("Iron", "symbol", "Fe"),
        Fact("Iron", "group", "8"),
        Fact("Gold", "atomic_number", "79"),
        Fact("Helium", "group", "18"),
        Fact("Hydrogen", "group", "1"),
        Fact("Lead", "period", "6"),
        Fact("Boron", "group", "13"),
        Fact("Uranium", "atomic_mass", "238"),
    ):
        assert fact in known


def test_elements_of_the_f_block_have_no_group():
    grouped = {fact.subject for fact in WHOLE.pretrain if fact.relation == "group"}
    assert grouped.isdisjoint({"Lanthanum", "Cerium", "Uranium"})
    assert {"Barium", "Lutetium", "Hafnium"} <= grouped


def test_all_text_is_short_ascii():
    for fact in WHOLE.pretrain:
        assert fact.subject.isascii() and fact.value.isascii()
        assert len(fact.subject) <= MAX_SUBJECT and len(fact.value) <= MAX_VALUE


def test_no_value_repeats_a_word_of_its_subject():
    for fact in WHOLE.pretrain:
        words = set(re.findall("[a-z]{3,}", fact.subject.lower()))
        assert words.isdisjoint(re.findall("[a-z]{3,}", fact.value.lower())), fact


def test_no_code_is_the_beginning_of_its_subject():
    for fact in WHOLE.pretrain:
        if fact.relation in ("symbol", "country_code", "domain", "currency"):
            assert not fact.subject.lower().startswith(fact.value.lower().strip(".")), fact


def test_a_day_is_about_one_continent_or_about_elements():
    theme = {info["name"]: info.get("region") for info in CountryInfo.all().values()}
    theme |= {f.subject: "Elements" for f in WHOLE.pretrain if f.relation == "atomic_number"}
    seen = [{theme.get(s) for s in subjects(day)} - {None} for day in atlas(1, 8, 80).days]
    assert all(len(themes) == 1 for themes in seen)
    assert len(set().union(*seen)) == 6, "eight days visit all six themes"


def test_a_day_takes_whole_subjects_until_the_last_one():
    whole = Counter(fact.subject for fact in WHOLE.pretrain)
    for day in atlas(2, 8, 80).days:
        taken = Counter(fact.subject for fact in day)
        assert all(taken[s] == whole[s] for s in subjects(day)[:-1])


def test_the_seed_chooses_which_subjects_go_where():
    first, second = (
        {s for day in atlas(seed, 4, 80).days for s in subjects(day)} for seed in (0, 1)
    )
    assert first != second


@pytest.mark.parametrize("seed", range(5))
def test_eight_days_of_eighty_facts_leave_enough_to_pretrain_on(seed):
    assert len(atlas(seed, 8, 80).pretrain) >= 800


def test_too_many_days_are_refused_with_the_number_that_fits():
    with pytest.raises(ConfigError, match="at most") as caught:
        atlas(0, 500, 80)
    most = int(re.search(r"at most (\d+) days", str(caught.value)).group(1))
    assert len(atlas(0, most, 80).days) == most
    with pytest.raises(ConfigError):
        atlas(0, most + 1, 80)


@pytest.mark.parametrize(("days", "facts"), [(-1, 80), (2, 0)])
def test_impossible_sizes_are_refused(days, facts):
    with pytest.raises(ConfigError, match="needs days"):
        atlas(0, days, facts)
