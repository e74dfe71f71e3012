"""Colours of skills: distinct, stable, and told apart by every kind of colour vision."""

import re

import numpy as np

from metamoe_backend.skills.palette import PALETTE, UNASSIGNED, compute_distances, next_colour


def test_the_palette_is_told_apart_by_every_colour_vision():
    colours = [*PALETTE, UNASSIGNED]
    distances = compute_distances(colours, colours)
    assert len(PALETTE) >= 12
    assert distances[np.triu_indices(len(colours), 1)].min() > 9


def test_red_and_green_of_equal_lightness_are_near_for_a_protanope_only():
    pair = compute_distances(["#bb5500"], ["#777700"])[0, 0]
    assert 0 < pair < 5
    assert compute_distances(["#000000"], ["#ffffff"])[0, 0] > 99


def test_the_first_free_colour_of_the_palette_comes_next():
    assert next_colour([]) == PALETTE[0]
    assert next_colour([PALETTE[0].upper(), PALETTE[2]]) == PALETTE[1]


def test_forty_skills_have_forty_colours_none_of_them_grey():
    used: list[str] = []
    for _ in range(40):
        used.append(next_colour(used))
    assert len(set(used)) == 40
    assert tuple(used[:12]) == PALETTE
    assert all(re.fullmatch(r"#[0-9a-f]{6}", colour) for colour in used)
    distances = compute_distances(used, [UNASSIGNED])
    assert distances.min() > 3


def test_colours_a_person_chose_are_kept_away_from():
    chosen = [*PALETTE, "#123456"]
    assert next_colour(chosen) not in chosen
