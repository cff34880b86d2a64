"""reward/morphemes.py: Kiwi with masks kept whole."""

import re

import pytest

from alignment.data import load_records
from alignment.speakers import MASK
from reward.morphemes import morphemes


@pytest.mark.parametrize(
    ("text", "forms"),
    [
        ("#Person1#은 간다.", ["#Person1#", "은", "가", "ᆫ다", "."]),
        ("#Person2#는 #PhoneNumber#로 간다", ["#Person2#", "는", "#PhoneNumber#", "로", "가", "ᆫ다"]),
        ("#Person1# 는 #Person2# 의 집", ["#Person1#", "는", "#Person2#", "의", "집"]),
        ("#Person1##Person2#", ["#Person1#", "#Person2#"]),
    ],
)
def test_a_mask_is_whole_and_what_follows_a_particle(text, forms):
    assert [morpheme.form for morpheme in morphemes(text)] == forms


def test_a_mask_is_a_proper_noun_and_its_particles_are_told_apart():
    tags = [morpheme.tag for morpheme in morphemes("#Person1#은 #Person2#가 #Person3#과 왔다고 했다.")]
    assert tags[:6] == ["NNP", "JX", "NNP", "JKS", "NNP", "JKB"]


def test_every_mask_of_the_shipped_summaries_is_kept():
    for record in load_records("embedded-ko")[0]:
        masks = re.findall(r"#[A-Za-z0-9]+#", record.references[0])
        assert [morpheme.form for morpheme in morphemes(record.references[0]) if MASK.fullmatch(morpheme.form)] == masks
