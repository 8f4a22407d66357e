"""Wordings of the relations between a chemical element and its facts.

Held-out wordings recombine words that training wordings use: a small model cannot know a word
that it never saw.
"""

from __future__ import annotations

from sleeplm.data.facts import Relation

SYMBOL = Relation(
    name="symbol",
    statements=(
        "{s} has the symbol {v}.",
        "{s} is written as {v} in a formula.",
        "{s}: chemical symbol {v}.",
        "{s} appears as {v} in formulas.",
        "{s} is {v} to a chemist.",
        "{s} is marked with the sign {v}.",
        "The chemical symbol of {s} is {v}.",
        "{v} is the sign for {s}.",
    ),
    questions=(
        "{s} is written with what chemical symbol?",
        "{s} is written how in a formula?",
        "{s} is marked with which sign?",
        "{s} appears as what in formulas?",
        "{s} is what to a chemist?",
        "{s} has which sign in formulas?",
        "{s}: what is its sign?",
        "Which sign is written for {s} in a formula?",
        "What is the sign of {s} to a chemist?",
        "Which symbol stands for {s} in formulas?",
    ),
    held_out_statements=(
        "{s} has the chemical sign {v}.",
        "The symbol for {s} in formulas is {v}.",
    ),
    held_out_questions=(
        "{s} has which chemical symbol?",
        "What is the symbol of {s}?",
    ),
)

ATOMIC_NUMBER = Relation(
    name="atomic_number",
    statements=(
        "{s} has the atomic number {v}.",
        "{s} is element number {v}.",
        "{s}: atomic number {v}.",
        "{s} has {v} protons.",
        "{s} carries {v} protons in its nucleus.",
        "{s} stands at place {v} of the table.",
        "The atomic number of {s} is {v}.",
        "A nucleus of {s} holds {v} protons.",
    ),
    questions=(
        "{s}: what atomic number?",
        "{s} has a nucleus that holds how many protons?",
        "{s} is element number what?",
        "{s} carries what atomic number?",
        "{s} stands at which place of the table?",
        "{s} has what number in the table?",
        "{s}: how many protons in its nucleus?",
        "What is the atomic number of {s}?",
        "How many protons does {s} have?",
        "A nucleus of {s} holds how many protons?",
    ),
    held_out_statements=(
        "{s} holds {v} protons in its nucleus.",
        "{v} is the atomic number of {s}.",
    ),
    held_out_questions=(
        "{s} carries how many protons?",
        "How many protons has the nucleus of {s}?",
    ),
)

ATOMIC_MASS = Relation(
    name="atomic_mass",
    statements=(
        "{s} has an atomic mass of {v}.",
        "{s} weighs {v} units an atom.",
        "{s}: atomic mass {v}.",
        "{s} has atoms that weigh {v} units.",
        "{s} has the atomic weight {v}.",
        "{s} is listed with the mass {v}.",
        "The atomic mass of {s} is {v}.",
        "An atom of {s} weighs {v} units.",
    ),
    questions=(
        "{s}: what atomic mass?",
        "{s} has atoms that weigh what?",
        "{s} has what atomic weight?",
        "{s} weighs how many units an atom?",
        "{s} is listed at what atomic weight?",
        "{s} has an atom of what mass?",
        "{s}: how many units of mass?",
        "What is the atomic mass of {s}?",
        "How many units weighs an atom of {s}?",
        "What is the weight of {s} in units?",
    ),
    held_out_statements=(
        "{s} has atoms with the mass {v}.",
        "The atomic weight of {s} is {v} units.",
    ),
    held_out_questions=(
        "{s} is listed with what mass?",
        "What is the weight of an atom of {s}?",
    ),
)

PERIOD = Relation(
    name="period",
    statements=(
        "{s} is in period {v}.",
        "{s} belongs to row {v} of the table.",
        "{s}: period {v} of the table.",
        "{s} stands in row {v}.",
        "{s} sits in row number {v}.",
        "{s} is an element of the period {v}.",
        "The row of {s} is number {v}.",
        "In the table {s} is in row {v}.",
    ),
    questions=(
        "{s} has its place in which period?",
        "{s} stands in which row?",
        "{s} sits in row number what?",
        "{s} is an element of which period?",
        "{s} belongs to what period?",
        "{s} stands in which period of the table?",
        "{s}: what is its row number?",
        "In which row of the table is {s}?",
        "What is the row number of {s}?",
        "Which period of the table holds {s}?",
    ),
    held_out_statements=(
        "{s} stands in period {v} of the table.",
        "The period of {s} is number {v}.",
    ),
    held_out_questions=(
        "{s} belongs to which row of the table?",
        "In which period is {s}?",
    ),
)

GROUP = Relation(
    name="group",
    statements=(
        "{s} is in group {v}.",
        "{s} belongs to column {v} of the table.",
        "{s}: group {v} of the table.",
        "{s} stands in column {v}.",
        "{s} is a member of group {v}.",
        "{s} reacts like group {v}.",
        "The column of {s} is number {v}.",
        "In the table {s} is in column {v}.",
    ),
    questions=(
        "{s} has its place in which group?",
        "{s} stands in which column?",
        "{s} reacts like which group?",
        "{s} is a member of which group?",
        "{s} belongs to what group?",
        "{s} stands in which group of the table?",
        "{s}: what is its column number?",
        "In which column of the table is {s}?",
        "What is the column number of {s}?",
        "Which group of the table holds {s}?",
    ),
    held_out_statements=(
        "{s} stands in group {v} of the table.",
        "The group of {s} is number {v}.",
    ),
    held_out_questions=(
        "{s} belongs to which column of the table?",
        "In which group is {s}?",
    ),
)

DENSITY = Relation(
    name="density",
    statements=(
        "{s} has a density of {v}.",
        "{s} weighs {v} grams a cube.",
        "{s}: density {v}.",
        "{s} is {v} times as dense as water.",
        "{s} has the density {v} in grams.",
        "{s} is as dense as {v} times water.",
        "The density of {s} is {v}.",
        "A small cube of {s} weighs {v} grams.",
    ),
    questions=(
        "{s} has a density of how many grams?",
        "{s}: what does a cube weigh in grams?",
        "{s} is how many times as dense as water?",
        "{s} has how many times the density of water?",
        "{s} is as dense as how many times water?",
        "{s}: which density in grams?",
        "{s}: how many grams in a small cube?",
        "What is the density of {s}?",
        "How dense is {s} in grams?",
        "How many times as dense as water is {s}?",
    ),
    held_out_statements=(
        "{s} has {v} times the density of water.",
        "The density of {s} in grams is {v}.",
    ),
    held_out_questions=(
        "{s} has what density?",
        "How many grams weighs a small cube of {s}?",
    ),
)

CRYSTAL = Relation(
    name="crystal",
    statements=(
        "{s} forms {v} crystals.",
        "{s} has crystals of {v} form.",
        "{s}: crystal lattice {v}.",
        "{s} packs its atoms in the {v} lattice.",
        "{s} crystals have the form {v}.",
        "{s} freezes into the {v} lattice.",
        "The crystal lattice of {s} is {v}.",
        "Crystals of {s} are {v}.",
    ),
    questions=(
        "{s}: which crystal lattice?",
        "{s} forms which crystals?",
        "{s} packs its atoms in which lattice?",
        "{s} has crystals of which form?",
        "{s} crystals have what form?",
        "{s} freezes into crystals of what form?",
        "{s}: what is the lattice of its atoms?",
        "Which lattice do crystals of {s} form?",
        "What is the form of {s} crystals?",
        "Atoms of {s} form which lattice?",
    ),
    held_out_statements=(
        "{s} forms the {v} lattice.",
        "The lattice of {s} crystals is {v}.",
    ),
    held_out_questions=(
        "{s} freezes into which lattice?",
        "What is the crystal lattice of {s}?",
    ),
)

RADIUS = Relation(
    name="radius",
    statements=(
        "{s} has a radius of {v}.",
        "{s} atoms measure {v} to the edge.",
        "{s}: atom radius {v}.",
        "{s} reaches out {v} from its nucleus.",
        "{s} has the covalent radius {v}.",
        "{s} binds at a radius of {v}.",
        "The covalent radius of {s} is {v}.",
        "Atoms of {s} reach out {v}.",
    ),
    questions=(
        "{s} binds with atoms of what covalent radius?",
        "{s} reaches out how far?",
        "{s} atoms measure how much to the edge?",
        "{s} binds at what radius?",
        "{s} has atoms of which radius?",
        "{s} atoms reach out how far?",
        "{s}: how far from its nucleus to the edge?",
        "How far from its nucleus does {s} reach out?",
        "How far do atoms of {s} reach out?",
        "Which covalent radius do atoms of {s} have?",
    ),
    held_out_statements=(
        "{s} atoms reach out {v}.",
        "The radius of {s} atoms is {v}.",
    ),
    held_out_questions=(
        "{s} has what covalent radius?",
        "What is the radius of {s} atoms?",
    ),
)

ELEMENT_RELATIONS = (
    SYMBOL,
    ATOMIC_NUMBER,
    ATOMIC_MASS,
    PERIOD,
    GROUP,
    DENSITY,
    CRYSTAL,
    RADIUS,
)
