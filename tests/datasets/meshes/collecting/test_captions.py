"""Captions follow from the names of files, the titles of catalogues and the paths of actors."""

import pytest

from datasets.meshes.collecting.actor_captions import caption_of_actor
from datasets.meshes.collecting.captions import caption_of_file, caption_of_title


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("bed_double_A", "a double bed"),
        ("coatRackStanding", "a standing coat rack"),
        ("table_long_broken", "a broken long table"),
        ("Apple_2", "an apple"),
        ("stairs", "stairs"),
        ("grass01", "grass"),
        ("unicorn", "a unicorn"),
        ("01", ""),
    ],
)
def test_names_of_files_become_noun_phrases(name, caption):
    assert caption_of_file(name) == caption


@pytest.mark.parametrize(
    ("title", "caption"),
    [
        ("Double French window 3 panes", "a double French window"),
        ("Bed 140x190", "a bed"),
        ("TV", "a TV"),
        ("SUV", "an SUV"),
        ("MP3 base", "an MP3 base"),
        ("Ford Focus", "a Ford Focus"),
        ("Bowl with fruits", "a bowl with fruits"),
        ("Air conditioning - External unit", "an air conditioning"),
        ("Scissors", "scissors"),
        ("Sitting male", "a sitting man"),
        ("Bath mat", "a bath mat"),
        ("Gaz water heater", "a gas water heater"),
    ],
)
def test_titles_of_catalogues_become_noun_phrases(title, caption):
    assert caption_of_title(title) == caption


@pytest.mark.parametrize(
    ("actor", "noun", "caption"),
    [
        ("fauna/horse_celtic.xml", "", "a Celtic horse"),
        ("fauna/arctic_wolf.xml", "", "an arctic wolf"),
        ("flora/trees/palm_date_2.xml", "tree", "a date palm tree"),
        ("structures/athenians/siege_ram.xml", "", "an Athenian siege ram"),
        ("geology/stonemine_granite_greek.xml", "", "a granite rock"),
        ("props/special/eyecandy/blocks_granite_pile_a.xml", "", "a pile of granite blocks"),
        ("structures/mauryas/stable_elephant.xml", "", "a Mauryan elephant stable"),
        ("structures/carthaginians/embassy_celtic.xml", "", "a Carthaginian Celtic embassy"),
        ("structures/persians/trader_merchant.xml", "", "a Persian trader merchant ship"),
        ("props/special/eyecandy/hay_cart.xml", "", "a hay cart"),
    ],
)
def test_actors_become_noun_phrases(actor, noun, caption):
    assert caption_of_actor(actor, noun=noun) == caption
