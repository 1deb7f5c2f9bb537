"""One word splitter for texts of every script: scores of texts and the search for duplicates split words by it.

Knows nothing about languages, except that English articles are small words. Equal texts have equal words, whether their
accents are composed or not (NFC, NFD); different numbers have different words.
"""

import re
import unicodedata

ARTICLES = ("a", "an", "the")

JOINERS = ".,:\u066b\u066c\uff0e\uff0c\uff1a\u00b7"  # within a number: 3.5, 1,000, 10:30
APOSTROPHES = "'\u2019"
MINUS = "-\u2212"
WHOLE_SIGNS = "%‰٪&^\u2044"  # kept beside the symbols of Unicode, because they change what a text says
BETWEEN = "/*\\"  # kept between operands: 1/2, 2 * 3
BLANKLESS = re.compile(r"CJK|HIRAGANA|KATAKANA|BOPOMOFO|YI |THAI|LAO|KHMER|MYANMAR|TIBETAN|JAVANESE|TAI |NEW TAI")
"""Scripts without blanks between words, by the names of their letters: each letter is a word."""


class Kinds(dict[int, str]):
    """Kind of each character, one letter: word, digit, mark, sign of a script without blanks, operator, and others."""

    def __missing__(self, code: int) -> str:
        self[code] = kind = _kind(chr(code))
        return kind


def _kind(character: str) -> str:
    for some, kind in (
        (JOINERS, "."),
        (MINUS, "-"),
        (BETWEEN, "*"),
        ("_", "_"),
        (APOSTROPHES, "'"),
        ("#", "#"),
        ("!", "!"),
    ):
        if character in some:
            return kind
    category = unicodedata.category(character)
    if category in ("Lo", "Lm") and BLANKLESS.match(unicodedata.name(character, "")):
        return "s"
    if character in WHOLE_SIGNS or category in ("Sm", "Sc", "So"):
        return "o"
    exact = {"Nd": "d", "Pd": "~", "Pe": ")", "Ps": "("}
    return exact.get(category) or {"L": "w", "N": "w", "M": "m"}.get(category[0], " ")


KINDS = Kinds()

_SIGN = r"(?<![wdm)])[-~](?=\.?d)|(?<![wdms)-])-(?=w(?![wdms]))"
_INNER = r"(?<=d)\.(?=d)|(?<=[wdm])_(?=[wd])|(?<=[wm])'(?=w)"
TOKEN = re.compile(
    rf"(?:{_SIGN})?(?:(?<![wdm])\.(?=d))?[wd](?:[wdm]|{_INNER})*#?"  # -5, .5, 3.5, 10:30, snake_case, don't, C#
    r"|sm*|om*|!(?=o)"
    r"|(?<=d)[-~*](?=d)|(?<=[wdms)] )[-*](?= [wdmso(.-])|(?<![wdms)-])-(?=[o(])"  # 2024-01-05, 1/2, x - y, -$5
)
THOUSANDS = re.compile(r"(?<![\d.,])([-]?[1-9]\d{0,2})((?:,\d{3})+)(?![\d,:])")


def folded(text: str) -> str:
    """The text without differences of case, white space, composition and invisible characters."""
    if text.isascii():  # has neither of the last two
        return " ".join(text.lower().split())
    cased = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    return " ".join("".join(c for c in cased if unicodedata.category(c) != "Cf").split())


def words(text: str) -> list[str]:
    """Words, numbers and operators of a text; a text of nothing but punctuation is split into its characters.

    Kept: letters of every script with their marks; numbers with sign, point, colon and slash (-5, 3.5, 1/2, 10:30);
    the symbols of Unicode, such as + < = $ and emoji, and %, &, ^. In scripts without blanks, each letter is a word.
    Other punctuation only separates words, except that an apostrophe joins its word.
    """
    plain = folded(text)
    tokens = [plain[match.start() : match.end()] for match in TOKEN.finditer(plain.translate(KINDS))]
    found = [token if token.isalnum() else _spelled(token) for token in tokens]
    return found or [character for character in plain if character != " "]


def content_words(text: str) -> list[str]:
    """The words of a text without the English articles that stand before a word."""
    found = words(text)
    followed = zip(found, [*found[1:], ""], strict=False)
    return [word for word, then in followed if word not in ARTICLES or not then[:1].isalnum()]


def _spelled(token: str) -> str:
    token = "".join(character for character in token if character not in APOSTROPHES)
    if token[0] in MINUS or unicodedata.category(token[0]) == "Pd":
        token = "-" + token[1:]
    return THOUSANDS.sub(lambda match: match[1] + match[2].replace(",", ""), token)
