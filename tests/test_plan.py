"""Plans: what may be assigned to whom, and how even it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamoe_backend.errors import ConfigError, NotFoundError
from metamoe_backend.experts.plan import (
    check_assignments,
    compute_balance,
    compute_plan_sizes,
    find_unassigned,
    parse_assignments,
)

names = st.from_regex(r"\A[a-z][a-z0-9._-]{0,20}\Z")
skills = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).filter(
    lambda s: s == s.strip()
)


@given(st.dictionaries(skills, names, min_size=1, max_size=8))
def test_assignments_are_read_back(wanted: dict[str, str]) -> None:
    assert parse_assignments([f"{skill}={expert}" for skill, expert in wanted.items()]) == wanted


def test_skills_may_share_an_expert_and_hold_spaces_and_equals_signs() -> None:
    texts = ["letter counting = words", "spelling=words", "a=b=logic", "general=base", "算术=计算"]
    assert parse_assignments(texts) == {
        "letter counting": "words", "spelling": "words", "a=b": "logic", "general": "base", "算术": "计算",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["arithmetic", "=calc", "arithmetic=", "", " = "])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write SKILL=EXPERT"):
        parse_assignments([text])


@pytest.mark.parametrize("expert", ["../../x", "a/b", ".hidden", "a b", "x" * 65])
def test_expert_names_are_safe_as_folder_names(expert: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        parse_assignments([f"arithmetic={expert}"])


def test_a_skill_goes_to_one_expert() -> None:
    with pytest.raises(ConfigError, match="'arithmetic' goes to both 'calc' and 'sums'"):
        parse_assignments(["arithmetic=calc", "logic=sums", "arithmetic=sums"])


def test_a_plan_fits_its_labelling() -> None:
    check_assignments({"arithmetic": "calc", "general": "base"}, ["arithmetic", "general", "logic"], "v1")
    with pytest.raises(NotFoundError, match=r"'algebra' is not in labelling 'v1' \(it has: arithmetic, logic\)"):
        check_assignments({"algebra": "calc"}, ["logic", "arithmetic"], "v1")
    with pytest.raises(ConfigError, match="trains no expert"):
        check_assignments({"logic": "base"}, ["logic"], "v1")


def test_sizes_shares_and_balance() -> None:
    counts = {"arithmetic": 30, "counting": 10, "logic": 20, "general": 40, "letters": 5}
    assignments = {"logic": "reason", "counting": "calc", "arithmetic": "calc", "general": "base"}
    sizes = compute_plan_sizes(counts, assignments)
    assert sizes.to_dict("list") == {
        "expert": ["calc", "reason", "base"],
        "skills": [["arithmetic", "counting"], ["logic"], ["general"]],
        "questions": [40, 20, 40],
        "share": [0.4, 0.2, 0.4],
    }
    assert compute_balance(sizes) == 0.5
    assert find_unassigned(counts, assignments) == ["letters"]


def test_balance_without_questions_is_zero() -> None:
    assert compute_balance(compute_plan_sizes({}, {"logic": "reason"})) == 0.0
    assert compute_balance(compute_plan_sizes({"logic": 5}, {"logic": "base"})) == 0.0
    assert compute_plan_sizes({}, {}).empty
