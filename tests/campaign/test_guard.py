"""Every fault of faults.py is noticed by the test that it names, and only because of the fault."""

import pytest

from tests.campaign.faults import FAULTS, Fault
from tests.campaign.guard import try_fault, try_without_faults
from tests.campaign.record import ROOT


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_place_of_a_fault_is_there_once(fault: Fault):
    assert (ROOT / "prunus" / fault.file).read_text().count(fault.old) == 1


@pytest.mark.slow
def test_the_tests_that_faults_name_pass_without_a_fault():
    assert not try_without_faults()["wrong"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_noticed(fault: Fault, tmp_path):
    assert not try_fault(fault, tmp_path)["wrong"]
