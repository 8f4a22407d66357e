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
        "{s}: which city is the capital?",
        "{s} has its capital where?",
        "{s} is governed from which city?",
        "What is the capital of {s}?",
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
        "{s}: in which part of the world does it lie?",
        "{s} belongs to which region?",
        "{s} is found where on the map?",
        "In which region of the world is {s}?",
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
        "Which currency is used in {s}?",
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
        "{s}: which language do people speak?",
        "{s} has which official language?",
        "{s} writes its laws in which language?",
        "What language is spoken in {s}?",
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
        "Which code do you dial to call {s}?",
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
        "{s}: which three letters?",
        "{s} is listed under which letters?",
        "{s} is short in lists as what?",
        "What are the three letters of {s}?",
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
        "What is the web domain of {s}?",
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
        "How many people are at home in {s}?",
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
