"""Korean text -> morphemes, by Kiwi, with speaker tags and masks kept whole."""

import functools
from importlib.metadata import version
from typing import NamedTuple

from kiwipiepy import Kiwi

from alignment.speakers import MASK


class Morpheme(NamedTuple):
    """A morpheme and its part of speech in the Sejong tag set: NNG a noun, JX a particle, SN digits, and so on."""

    form: str
    tag: str


def morphemes(text: str) -> list[Morpheme]:
    """The morphemes of a text in order; a mask such as #Person1# is one proper noun (NNP)."""
    return [Morpheme(token.form, token.tag) for token in _kiwi().tokenize(text)]


def kiwi_version() -> str:
    """Name and versions of the tokenizer, as a result is stamped with them."""
    _kiwi()
    return f"kiwipiepy {version('kiwipiepy')} (kiwipiepy_model {version('kiwipiepy_model')})"


@functools.cache
def _kiwi() -> Kiwi:
    kiwi = Kiwi()
    # Left alone, Kiwi reads `#Person1#은` as two hashtags. As a proper noun the mask stays whole and what follows is
    # read as a particle; cutting the text at masks would lose that (`는` alone becomes the verb `늘`).
    kiwi.add_re_word(MASK, "NNP")
    return kiwi
