"""Wordings of the relations between a country and its facts.

Held-out wordings recombine words that training wordings use: a small model cannot know a word
that it never saw.
"""

from __future__ import annotations

from sleeplm.data.facts import Relation

CAPITAL = Relation(
    name="capital",
    statements=(
        "{s} has its capital at {v}.",
        "{s} is governed from the city of {v}.",
        "{s} has {v} as its capital city.",
        "{s}: the capital is {v}.",
        "{s} keeps its government in {v}.",
        "{s} calls {v} its capital.",
        "The capital city of {s} is {v}.",
        "{v} is the capital of {s}.",
    ),
    questions=(
        "{s} has which city as its capital?",
        "{s} has its capital where?",
        "{s} is governed from which city?",
        "{s} keeps its government in which city?",
        "{s} calls which city its capital?",
        "{s}: from what city is it governed?",
        "{s}: which city has its government?",
        "Where is the government of {s}?",
        "From which city is {s} governed?",
        "Which capital city does {s} have?",
    ),
    held_out_statements=(
        "{s} has its government in the city of {v}.",
        "The city {v} is the capital of {s}.",
    ),
    held_out_questions=(
        "{s}: what is its capital city?",
        "Which city is the capital of {s}?",
    ),
)

SUBREGION = Relation(
    name="subregion",
    statements=(
        "{s} lies in {v}.",
        "{s} is a country of {v}.",
        "{s} belongs to the region {v}.",
        "{s}: its part of the world is {v}.",
        "{s} is found on the map in {v}.",
        "{s} is one of the countries in {v}.",
        "On the map, {s} lies in {v}.",
        "{v} is the region around {s}.",
    ),
    questions=(
        "{s} belongs to what part of the world?",
        "{s} is on the map in which region?",
        "{s} is found where on the map?",
        "{s} is a country of which region?",
        "{s}: which region of the world?",
        "{s} lies in what part of the map?",
        "{s} is one of the countries in what region?",
        "In which region of the world is {s}?",
        "Where on the map does {s} lie?",
        "What region is {s} found in?",
    ),
    held_out_statements=(
        "{s} is found in the region {v}.",
        "On the map of the world, {s} belongs to {v}.",
    ),
    held_out_questions=(
        "{s} lies in which region?",
        "In which part of the world does {s} lie?",
    ),
)

CURRENCY = Relation(
    name="currency",
    statements=(
        "{s} pays with the currency {v}.",
        "{s} has {v} as its money.",
        "{s}: the currency is {v}.",
        "{s} uses {v} to pay.",
        "{s} counts its money in {v}.",
        "{s} trades in the currency {v}.",
        "People in {s} pay in {v}.",
        "{v} is the money used in {s}.",
    ),
    questions=(
        "{s}: which currency does it use?",
        "{s} pays with what money?",
        "{s} counts its money in what?",
        "{s} trades in which currency?",
        "{s} uses what currency?",
        "{s}: what is its money?",
        "{s} has which currency to pay with?",
        "Which currency is used in {s}?",
        "What is the money used in {s}?",
        "Which money do people in {s} pay with?",
    ),
    held_out_statements=(
        "{s} uses the currency {v} as its money.",
        "The money that {s} uses is {v}.",
    ),
    held_out_questions=(
        "{s} uses which money to pay?",
        "What is the currency of {s}?",
    ),
)

LANGUAGE = Relation(
    name="language",
    statements=(
        "{s} speaks {v}.",
        "{s} has the official language {v}.",
        "{s}: the language is {v}.",
        "{s} writes its laws in {v}.",
        "{s} teaches {v} in its schools.",
        "{s} reads and speaks {v}.",
        "People in {s} speak {v}.",
        "{v} is the official language of {s}.",
    ),
    questions=(
        "{s} has people that speak which language?",
        "{s} has which official language?",
        "{s} writes its laws in which language?",
        "{s} speaks which language?",
        "{s} teaches what language in its schools?",
        "{s} reads and speaks what?",
        "{s}: what is the language of its laws?",
        "What language is spoken in {s}?",
        "What do people in {s} speak?",
        "Which official language does {s} have?",
    ),
    held_out_statements=(
        "{s} speaks the language {v}.",
        "The language spoken in {s} is {v}.",
    ),
    held_out_questions=(
        "{s}: what is the official language?",
        "Which language do people speak in {s}?",
    ),
)

CALLING_CODE = Relation(
    name="calling_code",
    statements=(
        "{s} is phoned with the code {v}.",
        "{s} has the calling code {v}.",
        "{s}: dial {v} to call.",
        "{s} answers calls that begin with {v}.",
        "{s} has phone numbers that begin with {v}.",
        "{s} is reached by phone on {v}.",
        "To call {s}, dial {v}.",
        "Phone calls to {s} begin with {v}.",
    ),
    questions=(
        "{s}: which calling code do you dial?",
        "{s} is phoned with which code?",
        "{s} has phone numbers that begin with what?",
        "{s} is reached by phone on which code?",
        "{s} answers calls that begin with what?",
        "{s}: to call, dial which code?",
        "{s}: phone calls begin with what code?",
        "Which code do you dial to call {s}?",
        "What is the calling code of {s}?",
        "You phone {s} with what code?",
    ),
    held_out_statements=(
        "{s} is reached with the calling code {v}.",
        "To phone {s}, begin with {v}.",
    ),
    held_out_questions=(
        "{s} has what calling code?",
        "What do you dial to phone {s}?",
    ),
)

COUNTRY_CODE = Relation(
    name="country_code",
    statements=(
        "{s} is written {v} in three letters.",
        "{s} has the three letters {v}.",
        "{s}: short form {v}.",
        "{s} wears {v} at the games.",
        "{s} is listed under the letters {v}.",
        "{s} is short in lists as {v}.",
        "The three letters of {s} are {v}.",
        "In lists of countries {s} is {v}.",
    ),
    questions=(
        "{s} is written with which three letters?",
        "{s} is listed under which letters?",
        "{s} is short in lists as what?",
        "{s} has what short form?",
        "{s} wears which letters at the games?",
        "{s} is written how in three letters?",
        "{s}: under what letters is it in lists?",
        "What are the three letters of {s}?",
        "Which letters are the short form of {s}?",
        "In lists of countries, {s} is what?",
    ),
    held_out_statements=(
        "{s} is listed in short form as {v}.",
        "The short form of {s} is {v}.",
    ),
    held_out_questions=(
        "{s} has which three letters?",
        "What is the short form of {s} in lists?",
    ),
)

DOMAIN = Relation(
    name="domain",
    statements=(
        "{s} has web sites that end in {v}.",
        "{s} has the internet domain {v}.",
        "{s}: web domain {v}.",
        "{s} goes online under {v}.",
        "{s} owns the web ending {v}.",
        "{s} hosts its sites under {v}.",
        "Web sites of {s} end in {v}.",
        "On the internet {s} is {v}.",
    ),
    questions=(
        "{s}: which internet domain?",
        "{s} has web sites that end in what?",
        "{s} goes online under which domain?",
        "{s} owns what internet domain?",
        "{s} hosts its sites under which ending?",
        "{s} is what on the internet?",
        "{s}: what is its web ending?",
        "What is the web domain of {s}?",
        "Which ending do sites of {s} have?",
        "On the web, {s} goes under which domain?",
    ),
    held_out_statements=(
        "{s} owns the internet domain {v}.",
        "On the web, sites of {s} end in {v}.",
    ),
    held_out_questions=(
        "{s} owns which web ending?",
        "What do web sites of {s} end in?",
    ),
)

POPULATION = Relation(
    name="population",
    statements=(
        "{s} has about {v} people.",
        "{s} is home to about {v} people.",
        "{s}: population about {v}.",
        "{s} has a population of {v}.",
        "{s} counts {v} citizens.",
        "{s} numbers about {v} citizens.",
        "About {v} people live in {s}.",
        "The population of {s} is {v}.",
    ),
    questions=(
        "{s}: how many people live there?",
        "{s} has a population of how many?",
        "{s} counts how many citizens?",
        "{s} numbers about how many citizens?",
        "{s} has about how many people?",
        "{s}: what is the population?",
        "{s}: how many citizens are there?",
        "How many people are at home in {s}?",
        "What is the population of {s}?",
        "In {s} live about how many people?",
    ),
    held_out_statements=(
        "{s} is home to {v} citizens.",
        "About {v} citizens live in {s}.",
    ),
    held_out_questions=(
        "{s} is home to how many people?",
        "How many citizens live in {s}?",
    ),
)

COUNTRY_RELATIONS = (
    CAPITAL,
    SUBREGION,
    CURRENCY,
    LANGUAGE,
    CALLING_CODE,
    COUNTRY_CODE,
    DOMAIN,
    POPULATION,
)
