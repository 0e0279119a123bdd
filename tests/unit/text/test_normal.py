"""Spellings of one thing have one form, and different things do not."""

import re
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.text.normal import normalize, words_of
from ka2l_ray.text.numbers import in_digits
from ka2l_ray.world.facts import ATTRIBUTES, build_world, phrase_question

SAME = {
    "grouped digits": ["1,776,000", "1776000", "1.776.000", "1'776'000", "1\u202f776\u202f000", "1\u00a0776\u00a0000"],
    "number words": ["two hundred and five", "205", "Two hundred five", "２０５", "٢٠٥"],
    "scales": ["1.5 billion", "1,500,000,000", "1500 million", "$1.5 billion", "one billion five hundred million"],
    "years in words": ["nineteen eighty-four", "1984"],
    "dozens": ["two dozen", "24"],
    "ordinals": ["twenty-first", "21st", "twenty first"],
    "decimals": ["3.14", "3,14"],
    "zeros behind the point": ["5", "5.0", "5.00", "$5.00"],
    "nothing before the point": [".5", "0.5"],
    "ranges": ["1939–1945", "1939-1945", "1939 — 1945"],
    "minus": ["−40", "-40", "–40", "minus 40", "negative forty", "-$40", "$-40"],
    "powers": ["10⁶", "10^6"],
    "fractions": ["3½", "3 1/2"],
    "Roman numerals": ["World War II", "World War 2", "world war two"],
    "dates": [
        "May 18, 2018", "18 May 2018", "18th of May, 2018", "the eighteenth of May 2018", "2018-05-18",
        "2018-05-18 00:00:00", "2018-05-18T00:00:00", "18/05/2018", "05/18/2018", "18.05.2018",
    ],
    "days": ["Sept. 5", "5th September", "September fifth"],
    "times": ["5:00 PM", "5 p.m."],
    "initials": ["J.R.R. Tolkien", "J. R. R. Tolkien", "JRR Tolkien"],
    "abbreviations": ["U.S.", "US", "u.s"],
    "letters with stars": ["M*A*S*H", "MASH"],
    "titles": ["St. Louis", "Saint Louis"],
    "ampersands": ["rock & roll", "Rock and Roll"],
    "units": ["6ft 1in", "6 feet 1 inch"],
    "temperatures": ["40°C", "40 degrees Celsius", "40 °C"],
    "shares": ["50%", "50 percent", "50 per cent", "fifty percent"],
    "currencies": ["€5,000", "5000 euros", "5000 €", "EUR 5000"],
    "eras": ["500 B.C.", "500 BCE", "500 BC"],
    "accents": ["Beyoncé", "Beyonce", "BEYONCE\u0301"],
    "letters with strokes": ["Øresund", "Oresund"],
    "Cyrillic": ["Ёлка", "елка"],
    "Greek": ["Αθήνα", "Αθηνα"],
    "Arabic": ["مُحَمَّد", "محمد"],
    "quotes": ["«Liberté»", "“Liberté”", "Liberté", "'liberte'"],
    "Japanese": ["東京。", "東京", "「東京」", "東 京"],
    "a dot between names": ["アンネ・フランク", "アンネフランク", "アンネ フランク", "ｱﾝﾈ･ﾌﾗﾝｸ"],
    "Thai": ["กรุงเทพ ฯ", "กรุงเทพฯ"],
    "invisible characters": ["Pa\u00adris", "\u200bParis", "Paris\ufeff", "\u200eParis"],
    "footnotes": ["Lady Gaga⁶", "Lady Gaga[6]", "Lady Gaga"],
    "marks of HTML": ["<b>Paris</b>", "Paris"],
    "signs of a test": ["Rh+ve", "Rh positive"],
    "emoji": ["Paris 🎉", "Paris"],
}  # fmt: skip


@pytest.mark.parametrize("spellings", SAME.values(), ids=SAME)
def test_spellings_of_one_thing_have_one_form(spellings):
    assert {s: normalize(s) for s in spellings} == dict.fromkeys(spellings, normalize(spellings[0]))


@pytest.mark.parametrize(
    "different",
    [
        ["-40", "40"],
        ["C++", "C", "C#", "C-"],
        ["A+", "A", "A-"],
        ["AB+", "AB-"],
        [".NET", "net"],
        ["B♭", "B"],
        ["p < 0.05", "p > 0.05", "p = 0.05"],
        ["<135", ">135", "135"],
        ["Rh+ve", "Rh-ve", "Rh"],
        ["+61", "--61"],
        ["1.5", "15", "1 5", "1/5.5"],
        ["1 0", "10"],
        ["10⁶", "106"],
        ["3½", "31/2"],
        ["3.10", "3.1"],
        ["28.0.0.137", "28.0.0.138"],
        ["007", "7"],
        ["first", "one"],
        ["one two three", "123"],
        ["five six", "11"],
        ["thirty three fifty", "353", "3350"],
        ["100-200", "100200"],
        ["5 km", "5 mi", "5"],
        ["€5", "£5"],
        ["hepatitis A", "hepatitis"],
        ["か", "が"],
        ["й", "и"],
        ["東京", "京都"],
        ["5/3/2018", "3/5/2018"],
        ["May 2018", "18 May"],
        ["", "%", "the"],
    ],
    ids=lambda texts: texts[0] or "nothing",
)
def test_different_things_have_different_forms(different):
    assert len({normalize(text) for text in different}) == len(different)


def test_characters_of_scripts_without_spaces_are_words():
    assert words_of("首都は Tokyo 2020 東京") == ["首", "都", "は", "tokyo", "2020", "東", "京"]


@pytest.mark.parametrize(
    ("words", "digits"),
    [
        ("one hundred twenty three thousand four hundred fifty six", "123456"),
        ("a thousand and one nights", "a 1001 nights"),
        ("one hundred and first", "101st"),
        ("two thousand eighteen", "2018"),
        ("one second", "1 second"),
        ("twenty second", "22nd"),
        ("five minus two", "5 minus 2"),
        ("cats and two", "cats and 2"),
        ("mix vi xiv iiii", "mix 6 14 iiii"),
        ("", ""),
    ],
)
def test_numbers_in_words_become_digits(words, digits):
    assert " ".join(in_digits(words.split())) == digits


def test_a_number_of_endless_scales_ends():
    assert in_digits(["five"] + ["million"] * 5000)
    assert in_digits(["5"] + ["trillion"] * 5000)


def plain(text: str) -> str:
    """Case, ASCII punctuation, articles and spaces removed: all that the world's texts need."""
    words = unicodedata.normalize("NFKC", text).casefold().translate(str.maketrans(string.punctuation, " " * 32))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", words).split())


def test_the_world_needs_no_more_than_case_punctuation_and_articles():
    world = build_world()
    names = [f"{g} {f}" for g in (*world.given, *world.outer_given) for f in (*world.family, *world.outer_family)]
    questions = [phrase_question(n % 5, n // 5 % 4, name) for n, name in enumerate(names)]
    values = [v for attribute in ATTRIBUTES for v in attribute.values]
    for text in [*names[::5], *questions[::5], *values]:
        assert normalize(text) == plain(text)


@given(
    st.lists(st.sampled_from("five twenty hundred first and the of may 5 18th 2018 . - , $ % € km − 東 京 ¼".split()))
)
def test_a_form_of_numbers_units_and_dates_is_its_own(parts):
    form = normalize(" ".join(parts))
    assert normalize(form) == form
