"""Plans: which skill goes to which expert, checked against a labelling, and how evenly that spreads the questions."""

import re
from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from metamoe_backend.config import BASE_EXPERT, NAME_PATTERN
from metamoe_backend.errors import ConfigError, NotFoundError


def parse_assignments(texts: Sequence[str]) -> dict[str, str]:
    """`SKILL=EXPERT` texts as {skill: expert}; the last `=` divides, so a skill's name may hold one.

    Several skills may share an expert; the expert `base` means no adapter. Raises `ConfigError` for a text without
    `=`, an empty or unusable name, or a skill that is assigned twice.
    """
    assignments: dict[str, str] = {}
    for text in texts:
        skill, equals, expert = (part.strip() for part in text.rpartition("="))
        if not (equals and skill and expert):
            raise ConfigError(f"{text[:80]!r} is no assignment; write SKILL=EXPERT, for example arithmetic=calc.")
        if not re.match(NAME_PATTERN, expert):
            raise ConfigError(
                f"Expert name {expert[:80]!r} cannot be used; use letters, digits, '.', '_' and '-' (at most 64, "
                "beginning with a letter or digit)."
            )
        if skill in assignments:
            raise ConfigError(
                f"Skill {skill!r} goes to both {assignments[skill]!r} and {expert!r}; give each skill to one expert."
            )
        assignments[skill] = expert
    return assignments


def check_assignments(assignments: Mapping[str, str], skills: Collection[str], labelling: str) -> None:
    """Check a plan against the skills of its labelling.

    Raises `ConfigError` for a plan that trains nothing, `NotFoundError` for a skill the labelling has not.
    """
    for skill in assignments:
        if skill not in skills:
            there = ", ".join(sorted(skills)) or "none; label questions first"
            raise NotFoundError(f"Skill {skill!r} is not in labelling {labelling!r} (it has: {there}).")
    if not set(assignments.values()) - {BASE_EXPERT}:
        raise ConfigError("The plan trains no expert; give at least one skill to an expert other than 'base'.")


def compute_plan_sizes(counts: Mapping[str, int], assignments: Mapping[str, str]) -> pd.DataFrame:
    """Questions per expert: columns expert, skills (list), questions, share (of all assigned questions).

    `counts` is {skill: questions} of the labelling. Experts in order of name, `base` last.
    """
    experts = sorted(set(assignments.values()), key=lambda expert: (expert == BASE_EXPERT, expert))
    rows = []
    for expert in experts:
        skills = sorted(skill for skill, chosen in assignments.items() if chosen == expert)
        rows.append((expert, skills, sum(counts.get(skill, 0) for skill in skills)))
    sizes = pd.DataFrame(rows, columns=["expert", "skills", "questions"])
    return sizes.assign(share=sizes["questions"] / max(1, sizes["questions"].sum()))


def find_unassigned(skills: Collection[str], assignments: Mapping[str, str]) -> list[str]:
    """Skills of a labelling that the plan says nothing about, in order of name: nobody learns them."""
    return sorted(set(skills) - set(assignments))


def compute_balance(sizes: pd.DataFrame) -> float:
    """Questions of the smallest expert over those of the largest (`base` left out): 1 is even, 0 leaves one empty."""
    questions = sizes.loc[sizes["expert"] != BASE_EXPERT, "questions"]
    if questions.empty or questions.max() == 0:
        return 0.0
    return float(questions.min() / questions.max())
