"""Tasks of language from the command line: killed in the middle and resumed, they end in the same bits."""

import pytest

from tests.lib.programs import figures, kill_when_there, program
from tests.lib.texts import arguments

MOMENTS = {
    ("text", "magnitude"): "base/checkpoint.safetensors",
    ("text", "dhp"): "prune/search/checkpoint.safetensors",
    ("lm", "taylor"): "recover/checkpoint.safetensors",
    ("lm", "dhp"): "stages/prune.json",
}


@pytest.mark.timeout(900)  # three programs one after the other
@pytest.mark.parametrize(("task", "method"), MOMENTS)
def test_killed_and_resumed_it_ends_in_the_same_bits(task, method, tmp_path):
    asked = [*arguments(tmp_path, task), "--method", method]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    program([*asked, "--out", str(whole)])
    kill_when_there([*asked, "--out", str(killed)], killed / MOMENTS[task, method])
    assert not (killed / "result.json").exists()
    program([*asked, "--out", str(killed), "--resume"])
    assert figures(killed) == figures(whole) and figures(whole)["examples"]
    for name in ("model.safetensors", "keep.json", "base.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
