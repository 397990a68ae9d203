"""What is typed and what is stored, brought to one form: text -> what a telephone can tell apart.

Used for the columns that are searched (mirror.py) and for what is looked for in them (search.py), so that both
always agree. Whoever changes a rule here has to fold every row anew.
"""

import re
import unicodedata

from refunds.variants import FORMS

# What carries no sound: separators of names (田中・太郎, ジャン゠ポール, O'Brien), variation selectors (葛󠄀), and what
# is not seen (direction marks, zero-width joiners, the byte order mark). Blanks and control characters go as well.
SILENT = re.compile(
    "[\\s\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufe00-\ufe0f"
    "\U000e0000-\U000e0fff\ud800-\udfff・·•‧∙⋅゠='`’‘´\"“”,、]+"
)
# An IME writes one key as a dash or as the sign of a long vowel: after kana it is a vowel, elsewhere a dash.
DASHES = re.compile("([ァ-ヺー-ヿ]?)([-ー‐‑‒–—―−─]+)")
KATAKANA = {code: chr(code + 0x60) for code in (*range(0x3041, 0x3097), 0x309D, 0x309E)}
ONE_FORM = KATAKANA | FORMS
UNSAID = str.maketrans("", "", "-_/#.:")


def fold(text: str) -> str:
    """Return the text without what a telephone cannot tell: width, case, blanks, script of kana, forms of kanji.

    `ﾀﾅｶ　たろう` -> `タナカタロウ`, `髙﨑` -> `高崎`, `Taro@Example.JP` -> `taro@example.jp`. Folding twice is
    folding once.
    """
    if text.isascii():  # mails and references: no forms, no kana, and a dash is a dash
        return SILENT.sub("", text.lower())
    while (folded := _once(text)) != text:
        text = folded
    return text


def fold_reference(text: str) -> str:
    """Return a shop's order number folded, without the signs that nobody says: `#EC-2024/01` -> `ec202401`.

    What holds nothing else stays as it is.
    """
    folded = fold(text)
    return folded.translate(UNSAID) or folded


def _once(text: str) -> str:
    text = SILENT.sub("", unicodedata.normalize("NFKC", text).casefold())
    return DASHES.sub(_dash, text.translate(ONE_FORM))


def _dash(match: re.Match[str]) -> str:
    kana, dashes = match.groups()
    return str(kana) + ("ー" if kana else "-") * len(dashes)
