"""Wordings of the relations between a person and the facts of a life.

Held-out wordings recombine words that training wordings use: a small model cannot know a word
that it never saw.
"""

from __future__ import annotations

from sleeplm.data.facts import Relation

BIRTH_CITY = Relation(
    name="birth_city",
    statements=(
        "{s} was born in {v}.",
        "{s} comes from the city of {v}.",
        "{s}: place of birth {v}.",
        "{s} grew up in {v}.",
        "{s} calls {v} the home city.",
        "{s} first saw the light in {v}.",
        "The home city of {s} is {v}.",
        "{v} is the place where {s} was born.",
    ),
    questions=(
        "{s} was born in which city?",
        "{s}: in which city born?",
        "{s} was born and grew up where?",
        "{s} comes from which city?",
        "{s} has which place as home city?",
        "{s} calls which place the home city?",
        "{s} grew up in what city?",
        "{s} first saw the light where?",
        "{s}: what place of birth?",
        "Which place saw the birth of {s}?",
        "What is the place of birth of {s}?",
        "From which city comes {s}?",
    ),
    held_out_statements=(
        "{s} was born in the city of {v}.",
        "The place where {s} grew up is {v}.",
    ),
    held_out_questions=(
        "{s} was born where?",
        "What is the home city of {s}?",
    ),
)

BIRTH_YEAR = Relation(
    name="birth_year",
    statements=(
        "{s} was born in the year {v}.",
        "{s} has {v} as year of birth.",
        "{s}: born {v}.",
        "{s} belongs to the class of {v}.",
        "{s} counts birthdays since {v}.",
        "{s} came into the world in {v}.",
        "The birth of {s} was in {v}.",
        "In {v} came the birth of {s}.",
    ),
    questions=(
        "{s} has birthdays since what year?",
        "{s} has which year of birth?",
        "{s} counts birthdays since when?",
        "{s} came into the world in which year?",
        "In which year came {s} into the world?",
        "{s}: born in what year?",
        "{s} belongs to the class of which year?",
        "{s}: what is the year of birth?",
        "{s}: since when in the world?",
        "When was the birth of {s}?",
        "What is the year of birth of {s}?",
        "In what year came the birth of {s}?",
    ),
    held_out_statements=(
        "{s} came into the world in the year {v}.",
        "The year of birth of {s} is {v}.",
    ),
    held_out_questions=(
        "{s} came into the world when?",
        "In which year was {s} born?",
    ),
)

EMPLOYER = Relation(
    name="employer",
    statements=(
        "{s} works for {v}.",
        "{s} is employed by {v}.",
        "{s}: employer {v}.",
        "{s} earns a salary at {v}.",
        "{s} has a desk at the firm {v}.",
        "{s} goes to work at {v}.",
        "The employer of {s} is {v}.",
        "{v} is the firm that pays {s}.",
    ),
    questions=(
        "{s}: which employer?",
        "{s} works for which firm?",
        "{s} earns a salary where?",
        "{s} goes to work at what firm?",
        "{s} has a desk at which firm?",
        "{s} is employed where?",
        "{s} is employed these days by what firm?",
        "What firm pays the salary of {s}?",
        "{s}: which firm pays the salary?",
        "What is the firm that employs {s}?",
        "Which firm is the employer of {s}?",
        "At which firm is the desk of {s}?",
    ),
    held_out_statements=(
        "{s} has work at the firm {v}.",
        "The firm that employs {s} is {v}.",
    ),
    held_out_questions=(
        "{s} is employed by which firm?",
        "What firm pays {s}?",
    ),
)

PROFESSION = Relation(
    name="profession",
    statements=(
        "{s} is a {v} by trade.",
        "{s} has the profession of {v}.",
        "{s}: profession {v}.",
        "{s} makes a living as {v}.",
        "{s} was trained as a {v}.",
        "{s} has the job of {v}.",
        "The profession of {s} is {v}.",
        "By trade, {s} is a {v}.",
    ),
    questions=(
        "{s}: which profession?",
        "{s} makes a living as what?",
        "{s} has which job?",
        "{s} is what by trade?",
        "{s} has the job of what?",
        "{s} works in which profession?",
        "{s} was trained to make a living as what?",
        "What is the profession and trade that {s} has?",
        "{s}: trained for which profession?",
        "Which trade was {s} trained for?",
        "What is {s} by trade?",
        "Which job does {s} have?",
    ),
    held_out_statements=(
        "{s} is by profession a {v}.",
        "The job of {s} is {v}.",
    ),
    held_out_questions=(
        "{s} was trained as what?",
        "What is the profession of {s}?",
    ),
)

UNIVERSITY = Relation(
    name="university",
    statements=(
        "{s} studied at {v}.",
        "{s} has a degree from {v}.",
        "{s}: university {v}.",
        "{s} went to college at {v}.",
        "{s} was a student of {v}.",
        "{s} took the exams of {v}.",
        "The university of {s} was {v}.",
        "A degree of {v} belongs to {s}.",
    ),
    questions=(
        "{s}: which university?",
        "{s} has a degree from which university?",
        "{s} went to college where?",
        "{s} studied at what university?",
        "{s} took the hard exams at which college?",
        "At which college did {s} take the exams?",
        "{s} was a student of which college?",
        "{s} took the exams of what college?",
        "{s}: a degree from which college?",
        "Where did {s} study?",
        "At which university was {s} a student?",
        "From what college is the degree of {s}?",
    ),
    held_out_statements=(
        "{s} was a student at the university {v}.",
        "The degree of {s} was from {v}.",
    ),
    held_out_questions=(
        "{s} took exams at which university?",
        "In which college did {s} study?",
    ),
)

HOBBY = Relation(
    name="hobby",
    statements=(
        "{s} spends free time on {v}.",
        "{s} has a love of {v}.",
        "{s}: hobby {v}.",
        "{s} enjoys {v} on weekends.",
        "{s} relaxes with {v}.",
        "{s} has {v} as a hobby.",
        "The hobby of {s} is {v}.",
        "On weekends {v} relaxes {s}.",
    ),
    questions=(
        "{s}: which hobby?",
        "{s} spends free time on what?",
        "{s} enjoys what on weekends?",
        "{s} has a love of what?",
        "{s} has which hobby?",
        "{s} relaxes in free time with what?",
        "{s} relaxes on weekends with which hobby?",
        "What hobby on weekends does {s} enjoy?",
        "{s}: what hobby on weekends?",
        "What is the hobby of {s}?",
        "What relaxes {s} on weekends?",
        "Which hobby is the love of {s}?",
    ),
    held_out_statements=(
        "{s} enjoys {v} in free time.",
        "The love of {s} is the hobby {v}.",
    ),
    held_out_questions=(
        "{s} relaxes with what?",
        "What hobby does {s} love?",
    ),
)

INSTRUMENT = Relation(
    name="instrument",
    statements=(
        "{s} plays the {v}.",
        "{s} practises the {v} every evening.",
        "{s}: instrument {v}.",
        "{s} makes music on the {v}.",
        "{s} performs with a {v}.",
        "{s} learned to play the {v}.",
        "The instrument of {s} is the {v}.",
        "Every evening the {v} of {s} is heard.",
    ),
    questions=(
        "{s}: which instrument?",
        "{s} plays which instrument?",
        "{s} makes music on what?",
        "{s} practises what every evening?",
        "{s} performs with which instrument?",
        "{s} learned to play what every evening?",
        "Which instrument does {s} practise every evening?",
        "{s} learned music on what?",
        "{s}: music on which instrument?",
        "On which instrument is {s} heard?",
        "What is the instrument of {s}?",
        "What does {s} play every evening?",
    ),
    held_out_statements=(
        "{s} practises music on the {v}.",
        "The music of {s} is heard on the {v}.",
    ),
    held_out_questions=(
        "{s} learned to play which instrument?",
        "What instrument does {s} play?",
    ),
)

PET = Relation(
    name="pet",
    statements=(
        "{s} keeps a {v}.",
        "{s} owns a pet {v}.",
        "{s}: pet {v}.",
        "{s} feeds a {v} at home.",
        "{s} shares a house with a {v}.",
        "{s} has a {v} as a pet.",
        "The pet of {s} is a {v}.",
        "A {v} lives in the house of {s}.",
    ),
    questions=(
        "{s} shares the home with which pet?",
        "{s} keeps which animal as a pet?",
        "{s} feeds what animal at home?",
        "{s} shares a house with what animal?",
        "{s} has what as a pet?",
        "{s} owns and feeds which animal?",
        "{s} owns which animal as a pet?",
        "What animal lives at home with {s}?",
        "{s}: which animal lives at home?",
        "What pet does {s} own?",
        "What is the pet of {s}?",
        "Which pet shares the house of {s}?",
    ),
    held_out_statements=(
        "{s} keeps a pet {v} at home.",
        "The animal in the house of {s} is a {v}.",
    ),
    held_out_questions=(
        "{s} owns which pet?",
        "What animal lives in the house of {s}?",
    ),
)

BIOGRAPHY_RELATIONS = (
    BIRTH_CITY,
    BIRTH_YEAR,
    EMPLOYER,
    PROFESSION,
    UNIVERSITY,
    HOBBY,
    INSTRUMENT,
    PET,
)
