# ruff: noqa: RUF001  (texts of many scripts)
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data.words import content_words, folded, words

TEXTS = {
    "English": "The cat's hat, an Apple!",
    "French": "Le café naïve, très près",
    "Russian": "Столица Франции — Париж.",
    "Greek": "Η πρωτεύουσα είναι το Παρίσι",
    "Hindi": "फ्रांस की राजधानी पेरिस है",
    "Arabic": "عاصمة فرنسا باريس ٣٫٥",
    "Hebrew": "בירת צרפת היא פריז",
    "Chinese": "今天天气很好。",
    "Japanese": "東京は日本の首都です。カタカナ",
    "Korean": "한국의 수도는 서울",
    "Thai": "สวัสดีครับ",
    "Vietnamese": "Thủ đô của Việt Nam là Hà Nội",
    "Amharic": "አዲስ አበባ ዋና ከተማ ናት",
    "emoji": "👍 👎",
    "punctuation": "?!...",
    "code": "x != 3 && y >= 2",
}
WORDS = {
    "the cat's hat, an Apple": ["the", "cats", "hat", "an", "apple"],
    "-5": ["-5"],
    "\u22125": ["-5"],
    "\u20135 degrees": ["-5", "degrees"],
    "-$1.20": ["-", "$", "1.20"],
    "温度-5度": ["温", "度", "-5", "度"],
    "3.5": ["3.5"],
    "It is 3.5.": ["it", "is", "3.5"],
    ".5": [".5"],
    "1/2": ["1", "/", "2"],
    "1,000 or 1,5": ["1000", "or", "1,5"],
    "10:30": ["10:30"],
    "C++ and C#": ["c", "+", "+", "and", "c#"],
    "x > 3": ["x", ">", "3"],
    "x - 3": ["x", "-", "3"],
    "x != 3": ["x", "!", "=", "3"],
    "well-known": ["well", "known"],
    "- buy milk": ["buy", "milk"],
    "1914\u20131918": ["1914", "-", "1918"],
    "50%": ["50", "%"],
    "snake_case": ["snake_case"],
    "今天好。": ["今", "天", "好"],
    "राजधानी": ["राजधानी"],
    "...": [".", ".", "."],
    "zero\u200bwidth\ufeff": ["zerowidth"],
}


@pytest.mark.parametrize(("text", "expected"), WORDS.items(), ids=WORDS)
def test_words_numbers_and_operators(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_of_every_script_has_words_whatever_its_composition_and_case(text):
    assert words(text) and content_words(text)
    assert words(unicodedata.normalize("NFD", text)) == words(unicodedata.normalize("NFC", text)) == words(text)
    assert words(text.upper()) == words(text.casefold()) == words(f"\ufeff {text}\n")


number = st.builds(
    lambda sign, currency, digits, point, more, percent: (
        f"{sign}{currency}{digits}{point + more if more else ''}{percent}"
    ),
    st.sampled_from(["", "-"]),
    st.sampled_from(["", "$", "€"]),
    st.text("0123456789", min_size=1, max_size=4),
    st.sampled_from([".", ":", "/", "-", " ", "^", " + ", "*"]),
    st.text("0123456789", max_size=3),
    st.sampled_from(["", "%"]),
)
script = st.sampled_from(["{}", "It is {}.", "({})", "答案是{}。", "Ответ: {}", "उत्तर {}"])


@given(number, number, script)
def test_different_numbers_have_different_words(one, other, sentence):
    assert (words(sentence.format(one)) == words(sentence.format(other))) == (one == other)


@given(st.text())
def test_any_text_that_shows_something_has_words_and_composition_does_not_matter(text):
    assert bool(words(text)) == bool(folded(text)) and all(words(text))
    assert words(unicodedata.normalize("NFD", text)) == words(unicodedata.normalize("NFC", text))
    assert bool(content_words(text)) == bool(words(text))


def test_articles_are_dropped_only_before_a_word():
    assert content_words("The cat sat on a mat.") == ["cat", "sat", "on", "mat"]
    assert (
        content_words("A") == ["a"] and content_words("The.") == ["the"] and content_words("a = 3") == ["a", "=", "3"]
    )
