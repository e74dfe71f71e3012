"""A meta-question beside its question: placeholders and new words are marked, and no text is obeyed."""

import re

from hypothesis import given
from hypothesis import strategies as st

from pages.shared.marking import MOST_TOKENS, mark_differences


def unescape(markdown: str) -> str:
    return re.sub(r"\\(.)", r"\1", re.sub(r"(?<!\\):(?:blue-badge|violet-background)(?<!\\)\[|(?<!\\)\]", "", markdown))


def test_placeholders_are_badges_and_what_stands_in_both_is_plain():
    marked = mark_differences("What is 3 plus 4?", "What is [number] plus [number]?")
    assert marked == "What is :blue-badge[number] plus :blue-badge[number]?"


def test_words_the_question_does_not_have_are_on_one_ground():
    marked = mark_differences("Tom has 5 apples.", "Tom counts some apples\\.")
    assert marked.startswith("Tom :violet-background[counts some] apples")


def test_chinese_is_compared_character_by_character():
    assert mark_differences("小明有3个苹果", "[name]有[number]个梨") == (
        ":blue-badge[name]有:blue-badge[number]个:violet-background[梨]"
    )


def test_a_bracketed_word_that_is_no_placeholder_is_text():
    assert ":blue-badge" not in mark_differences("a", "see [here](http://x)")


def test_lines_stay_lines():
    assert mark_differences("a\nb", "a\n\nb") == "a  \nb"


def test_a_long_text_keeps_its_placeholders():
    text = "word " * MOST_TOKENS + "[number]"
    assert mark_differences("question", text).endswith(":blue-badge[number]")


def test_a_limit_cuts_the_text():
    assert mark_differences("", "x" * 50, limit=10) == ":violet-background[" + "x" * 9 + "…]"


@given(st.text(max_size=60), st.text(alphabet="ab[]()*_`<>$:!#|~ \\-", max_size=60))
def test_nothing_of_the_text_reaches_markdown_unescaped(question: str, text: str):
    for kind in (":blue-badge[", ":violet-background["):
        text = text.replace(kind, "")
    marked = re.sub(r"\\.", "", mark_differences(question, text))
    bare = re.sub(r":(?:blue-badge|violet-background)\[([^\[\]]*)\]", r"\1", marked)
    assert not re.search(r"[\[\]()*_`<>$:!#|~]", bare)


@given(st.text(alphabet="ab. ", max_size=30), st.text(alphabet="ab. ", max_size=30))
def test_no_word_is_lost(question: str, text: str):
    assert unescape(mark_differences(question, text)).split() == text.split()
