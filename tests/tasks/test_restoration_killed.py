"""Restoration from the command line: killed in the middle and resumed, it ends in the same bits."""

import pytest

from tests.lib.programs import assert_killed_resumes
from tests.lib.restoring import arguments

MOMENTS = {
    ("denoise", "magnitude"): "base/checkpoint.safetensors",
    ("denoise", "dhp"): "prune/search/checkpoint.safetensors",
    ("sr", "magnitude"): "recover/checkpoint.safetensors",
    ("sr", "dhp"): "stages/prune.json",
}


@pytest.mark.timeout(900)  # three programs one after the other
@pytest.mark.parametrize(("task", "method"), MOMENTS)
def test_killed_and_resumed_it_ends_in_the_same_bits(task, method, tmp_path):
    asked = [*arguments(tmp_path, task), "--method", method]
    assert_killed_resumes(asked, MOMENTS[task, method], tmp_path)
