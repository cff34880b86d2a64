"""A text -> its sentences."""

import re

# No end of a sentence: the dot of an abbreviation, an initial or a number, or a stop within a quotation.
_NO_END = re.compile(
    r"(?:\b(?:[A-Za-z]|\d+|Mr|Mrs|Ms|Dr|Prof|Rev|Capt|Gen|Lt|Sgt|St|Mt|Ave|Rd|Jr|Sr|No|vs|etc|Inc|Co|Corp|Ltd)\."
    r"|(?:^|[\s(])['\"“‘「『][^'\"”’」』]*)$",
    re.IGNORECASE,
)


def sentences(text: str) -> list[str]:
    """The sentences with the spaces after them, so that joined they are the text."""
    found, start = [], 0
    for gap in re.finditer(r"(?<=[.!?…])\s+", text):
        if not _NO_END.search(text[start : gap.start()]):
            found.append(text[start : gap.end()])
            start = gap.end()
    return [*found, text[start:]]
