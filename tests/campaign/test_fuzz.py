"""A short form of the fuzzing of every reader; `python -m tests.campaign.fuzz` is the long form."""

import pytest

from tests.campaign import examples, fuzz


@pytest.mark.parametrize("name", fuzz.READERS)
@pytest.mark.filterwarnings("ignore")
def test_the_files_of_version_0_1_0_are_read(name, tmp_path):
    tally = fuzz.Tally(name)
    tally.trial(fuzz.example_of(name).read_bytes(), tmp_path)
    assert tally.counts == {"read": 1}


@pytest.mark.parametrize("name", fuzz.READERS)
@pytest.mark.filterwarnings("ignore")
def test_only_errors_of_ours_come_of_damage_and_little_memory_is_used(name):
    before = fuzz.peak_mb()
    tally = fuzz.Tally(name).run(trials=12, number=0)
    assert not tally.faults
    assert tally.counts.total() >= 12
    assert fuzz.peak_mb() - before < fuzz.MOST_MB


def test_the_fuzzer_notices_errors_of_other_kinds_and_control_characters(tmp_path, monkeypatch):
    acting = fuzz.UserError()
    acting.args = ("damaged at \x1b[2J",)  # past the escaping of our errors
    for error in (KeyError("axes"), acting):

        def read(file, error=error):
            raise error

        monkeypatch.setitem(fuzz.READERS, "dhp.json", read)
        tally = fuzz.Tally("dhp.json").run(trials=3, number=0)
        assert len(tally.faults) == 1 and tally.counts["faults"] == 3


def test_every_example_has_a_reader():
    """The others are second ones of their kind."""
    files = {str(path.relative_to(examples.FILES)) for path in examples.FILES.rglob("*") if path.is_file()}
    unread = {
        name
        for name in files
        if name not in fuzz.READERS and not name.startswith(("times/", "units/stages/"))
    }
    assert unread == {"units/keep.json", "weights/keep.json", "weights/settings.json"}
