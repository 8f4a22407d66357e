"""Generated people: any number of them, from a seed."""

from __future__ import annotations

from collections import Counter

import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.data.biographies import BIOGRAPHY_ATTRIBUTES, biographies
from sleeplm.data.facts import subjects


def test_every_pretraining_person_has_all_attributes():
    world = biographies(0, 1, 16, pretrain_people=30)
    told = Counter(fact.subject for fact in world.pretrain)
    assert len(told) == 30
    assert set(told.values()) == {len(BIOGRAPHY_ATTRIBUTES)} == {8}


def test_names_have_two_parts():
    assert all(len(name.split()) == 2 for name in subjects(biographies(1, 2, 80).facts))


def test_a_day_is_trimmed_to_its_facts():
    world = biographies(0, 3, 13, pretrain_people=5)
    assert [len(day) for day in world.days] == [13, 13, 13]
    assert [len(subjects(day)) for day in world.days] == [2, 2, 2]


def test_values_are_shared_between_people():
    world = biographies(0, 1, 80, pretrain_people=200)
    cities = [fact.value for fact in world.pretrain if fact.relation == "birth_city"]
    assert len(set(cities)) < len(cities) / 3


@pytest.mark.slow
def test_it_scales_to_three_hundred_thousand_people_with_different_names():
    world = biographies(0, 1, 8, pretrain_people=300_000)
    assert len(subjects(world.pretrain)) == 300_000


@pytest.mark.parametrize("sizes", [(-1, 8, 5), (1, 0, 5), (1, 8, 0)])
def test_impossible_sizes_are_refused(sizes):
    days, facts, people = sizes
    with pytest.raises(ConfigError, match="needs"):
        biographies(0, days, facts, pretrain_people=people)
