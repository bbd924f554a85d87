"""A short form of the fuzzing of every reader; `python -m tests.campaign.fuzz` is the long form."""

import pytest

from prunus.errors import UserError
from tests.campaign import examples, fuzz
from tests.campaign.tally import MOST_MB, Tally, peak_mb


@pytest.mark.parametrize("name", fuzz.READERS)
@pytest.mark.filterwarnings("ignore")
def test_the_files_of_version_0_1_0_are_read(name, tmp_path):
    tally = fuzz.tally_of(name)
    tally.trial(fuzz.example_of(name).read_bytes(), tmp_path)
    assert tally.counts == {"read": 1}


@pytest.mark.parametrize("name", fuzz.READERS)
@pytest.mark.filterwarnings("ignore")
def test_only_errors_of_ours_come_of_damage_and_little_memory_is_used(name):
    before = peak_mb()
    tally = fuzz.tally_of(name).run(trials=8, number=0)
    assert not tally.faults
    assert tally.counts.total() >= 8
    assert peak_mb() - before < MOST_MB


def test_the_fuzzer_notices_errors_of_other_kinds_and_control_characters():
    acting = UserError()
    acting.args = ("damaged at \x1b[2J",)  # past the escaping of our errors
    for error in (KeyError("axes"), acting):

        def read(file, error=error):
            raise error

        tally = Tally("read", read, fuzz.example_of("dhp.json")).run(trials=3, number=0)
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
