"""Everything a person sees stands in the Chinese catalogue, and what is shown says the same with the same values."""

import ast

import pytest

from metamoe_backend import i18n
from pages.shared import catalogue


def test_every_message_is_translated() -> None:
    faults = catalogue.find_faults()
    assert not faults, "Run `python -m pages.shared.catalogue update`:\n" + "\n".join(faults)


def test_messages_speak_chinese() -> None:
    chinese = i18n.translations("zh_CN")
    assert chinese.gettext("Language") == "语言"
    assert chinese.ngettext("{n} question", "{n} questions", 1).format(n=1) == "1 个问题"
    assert chinese.gettext("words that are in no catalogue") == "words that are in no catalogue"


def test_english_knows_its_plurals() -> None:
    assert [i18n.ngettext("{n} question", "{n} questions", n) for n in (1, 2)] == ["{n} question", "{n} questions"]


def test_the_language_is_asked_of_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(i18n, "_ask", lambda: "zh_CN")
    assert i18n._("Language") == "语言"


def test_a_message_put_together_at_run_time_is_refused() -> None:
    with pytest.raises(ValueError, match="plain string"):
        list(catalogue._messages_of(ast.parse("_(f'{n} questions')"), "page.py"))


def test_filling_keeps_what_was_there_and_names_what_is_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(i18n, "LOCALE", tmp_path)
    wanted = {"One": {"a.py"}, "Two {n}": {"a.py"}, ("{n} cat", "{n} cats"): {"b.py"}}
    monkeypatch.setattr(catalogue, "find_messages", lambda: wanted)
    assert set(catalogue.update({"One": "一"})) == {"Two {n}", "{n} cat"}
    assert catalogue.update({"Two {n}": "二", "{n} cat": ["{n} 只猫"]}) == {}
    assert catalogue.find_faults() == ["placeholders differ: 'Two {n}' and '二'"]
    catalogue.update({"Two {n}": "二 {n}"})
    assert catalogue.find_faults() == []
    del wanted["One"]
    assert catalogue.find_faults() == ["no longer used: 'One'"]
    i18n.translations.cache_clear()
