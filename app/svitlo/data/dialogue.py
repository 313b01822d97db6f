"""Turns DailyDialog's tokenised utterances back into normal text: `I ’ Ve` → `I've`, `right.But` → `right. But`."""

from __future__ import annotations

import re

from svitlo.data.cleaning import clean_characters

_FULL_WIDTH = str.maketrans(
    {"。": ". ", "，": ", ", "、": ", ", "？": "? ", "！": "! ", "：": ": ", "；": "; ", "（": " (", "）": ") ",
     "′": "'",     "’": "'", "‘": "'", "“": '"', "”": '"', "…": "..."}
)  # fmt: skip

_CONTRACTION = re.compile(r"\b([^\W\d_]+) ?' ?(s|t|m|d|re|ve|ll|S|T|M|D|Re|Ve|Ll|RE|VE|LL)\b(?!')")
_CLOCK = re.compile(r"\b([oO]) ?' ?(clock)\b")
_ONE_WORD = re.compile(r"\b(ma|Ma|y|Y) ?' ?(am|all)\b")
_IRISH = re.compile(r"\bO ?' ?([A-Z][a-z]+)")
_LEFT_OUT = re.compile(r"(?<!\w) ?' (em|cause|til|bout|cuz)\b")
_PLURAL = re.compile(r"\b(\w*s) ' (?=[a-z])")
_SPLIT_NOT = re.compile(r"\b(do|does|did|is|are|was|were|have|has|had|wo|would|could|should|ca|must|need) n't\b", re.I)

_DOTS = re.compile(r"(?: ?\. ?){2,}")
_ABBREVIATION = re.compile(r"\b(?:[ap] \. m \.|(?:[A-Z] \. ){2,}|[AP] \. M \.)")
_TITLE = re.compile(r"\b(Mr|Mrs|Ms|Dr) \.(?= )")
_TIME = re.compile(r"(\d) ?: ?(\d\d)\b")
_THOUSANDS = re.compile(r"(\d) ?, ?(\d{3})(?!\d)")
_DECIMAL = re.compile(r"(\d) \. (\d)")
_BEFORE_MARK = re.compile(r"\s+([,.?!:;%)\]}])")
_AFTER_OPENING = re.compile(r"([(\[{])\s+")
_CURRENCY = re.compile(r"([$£¥#]) +(?=\d)")
_GLUED_SENTENCE = re.compile(r"([A-Za-z0-9')\"])([.?!]+)(?=[A-Z][a-z' ]|I\b|A\b)")
_GLUED_LOWER = re.compile(r"([a-z]{2})([.?!])(?=[a-z]{2})")
_ADDRESS = re.compile(r"www|@|\.(?:com|net|org|edu|gov)\b")
_GLUED_CLAUSE = re.compile(r"([A-Za-z])([,;])(?=[A-Za-z])")
_SPACES = re.compile(r"\s+")


def detokenize(text: str) -> str:
    """One utterance of the release as a person would type it, with ASCII quotes and apostrophes."""
    text = clean_characters(text).translate(_FULL_WIDTH)
    text = f" {_SPACES.sub(' ', text).strip()} "
    text = _apostrophes(text)
    text = _ABBREVIATION.sub(lambda found: found[0].replace(" ", "") + " ", text)
    text = _TITLE.sub(r"\1.", text)
    text = _TIME.sub(r"\1:\2", text)
    text = _THOUSANDS.sub(r"\1,\2", text)
    text = _DECIMAL.sub(r"\1.\2", text)
    text = _DOTS.sub("... ", text)
    text = _quotes(text, '"')
    text = _quotes(text, "'")
    text = _BEFORE_MARK.sub(r"\1", text)
    text = _AFTER_OPENING.sub(r"\1", text)
    text = _CURRENCY.sub(r"\1", text)
    if not _ADDRESS.search(text):
        text = _GLUED_SENTENCE.sub(r"\1\2 ", text)
        text = _GLUED_LOWER.sub(r"\1\2 ", text)
    text = _GLUED_CLAUSE.sub(r"\1\2 ", text)
    return _SPACES.sub(" ", text).strip()


def _apostrophes(text: str) -> str:
    text = _CLOCK.sub(r"\1'\2", text)
    text = _ONE_WORD.sub(r"\1'\2", text)
    text = _IRISH.sub(r"O'\1", text)
    text = _CONTRACTION.sub(lambda found: f"{found[1]}'{found[2].lower()}", text)
    text = _SPLIT_NOT.sub(r"\1n't", text)
    text = _LEFT_OUT.sub(r" '\1", text)
    return text if text.count(" ' ") > 1 else _PLURAL.sub(r"\1' ", text)


def _quotes(text: str, mark: str) -> str:
    """Attach free-standing quotation marks: the first of a pair to the word after it, the second to the one before."""
    parts = text.split(f" {mark} ")
    if len(parts) == 1:
        return text
    closed = [parts[0]]
    is_open = parts[0].count(f" {mark}") > parts[0].count(f"{mark} ")
    for part in parts[1:]:
        closed.append(f"{mark} " if is_open else f" {mark}")
        closed.append(part)
        is_open = not is_open
    return "".join(closed)
