"""The campaign tests/campaigns/faulty_music.py on seconds instead of hours: every kind once."""

import pytest
from campaigns import faulty_music as campaign

from etude.data.audio import pyav_installed
from etude.data.prepare import PrepareSettings, prepare

SETTINGS = PrepareSettings(clip_seconds=2, min_seconds=1.5)


def mistakes(folder, faults, formats):
    shop = campaign.Workshop(folder, SETTINGS, (2, 6), fault_seconds=4, seed=1)
    for kind, plant in faults.items():
        plant(shop, kind, len(kind))
    for name, write in formats.items():
        written = write(shop, shop.stem("good"), 5.3)
        shop.plant(name, written.path, fault=False, written=written)
    prepare([folder / "music"], folder / "corpus", SETTINGS, workers=0, say=lambda message: None)
    return campaign.mistakes(shop, folder / "corpus")


def test_every_kind_of_fault_is_named_and_every_good_track_is_kept_whole(tmp_path):
    assert len(campaign.FAULTS) >= 15
    assert mistakes(tmp_path / "c", campaign.FAULTS, campaign.FORMATS) == {}


@pytest.mark.skipif(not pyav_installed(), reason="needs PyAV to write and read m4a, aac and wma")
def test_faults_of_formats_that_pyav_reads_are_named_and_good_tracks_kept_whole(tmp_path):
    assert mistakes(tmp_path / "c", campaign.PYAV_FAULTS, campaign.PYAV_FORMATS) == {}


def test_the_campaign_itself_sees_a_wrong_reason_a_lost_sample_and_a_stranger(tmp_path):
    shop = campaign.Workshop(tmp_path / "c", SETTINGS, (2, 6), fault_seconds=4, seed=1)
    for name in ("flac 16", "mp3 CBR", "wav 24"):
        written = campaign.FORMATS[name](shop, shop.stem("good"), 5)
        shop.plant(name, written.path, fault=False, written=written)
    campaign.FAULTS["too_short"](shop, "too_short", 0)
    corpus = tmp_path / "c" / "corpus"
    prepare([tmp_path / "c" / "music"], corpus, SETTINGS, workers=0, say=lambda message: None)
    assert campaign.mistakes(shop, corpus) == {}
    flac, _, wav, short = shop.planted
    shorter = campaign.np.load(flac.truth)[:-1]
    campaign.np.save(flac.truth, shorter)
    other = campaign.np.load(wav.truth)
    other[1000] += 1
    campaign.np.save(wav.truth, other)
    report = corpus / "report.json"
    report.write_text(report.read_text().replace('"too_short"', '"silent"'))
    mp3 = shop.planted.pop(1)
    assert set(campaign.mistakes(shop, corpus)) == {
        flac.name,
        mp3.name,
        wav.name,
        short.name,
        "report.json",
    }
