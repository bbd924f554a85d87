"""The journal of a search: a kill at any moment, other settings, damage, and several processes."""

import json
import multiprocessing
import os
import random
import subprocess
import time
import tracemalloc
from multiprocessing import forkserver

import pytest
import torch

from prunus.errors import FileError, PrunusError, UserError
from prunus.graph import trace
from prunus.search import Evolution, Greedy, Space, search
from prunus.search import journal as journals
from prunus.selection import Budget
from tests.lib import searching
from tests.lib.searching import Images, Noting, concave, small_search
from tests.lib.two_processes import LAUNCH, ROOT, SCRIPT, launched


@pytest.fixture(scope="module")
def processes():
    """A server that forks processes with everything imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ROOT)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.lib.searching"])
        forkserver.ensure_running()
    return context


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with the journal and the log of an undisturbed search, and its result."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, small_search(folder)


def lines_of(folder):
    """The complete lines of a journal after its first."""
    file = folder / "journal.jsonl"
    text = file.read_bytes().rpartition(b"\n")[0] if file.exists() else b""
    return [json.loads(line) for line in text.splitlines()[1:]]


def searched(lines):
    """The networks that need not be evaluated again."""
    return {str(sorted(line["widths"].items())) for line in lines if line["on"] == "search"}


def looked_at(*folders):
    """(process, network) of each evaluation that was started."""
    logs = [(folder / "log").read_text() for folder in folders if (folder / "log").exists()]
    return [tuple(line.split(" ", 1)) for line in "".join(logs).splitlines()]


def assert_same_end(folder, undisturbed):
    """A resumed search ends in the same file and the same result, and evaluates nothing that is in the journal."""
    known, begun = searched(lines_of(folder)), len(looked_at(folder))
    result = small_search(folder)
    assert (folder / "journal.jsonl").read_bytes() == (undisturbed[0] / "journal.jsonl").read_bytes()
    assert result.plain() == undisturbed[1].plain()
    again = [network for _, network in looked_at(folder)[begun:]]
    assert not known & set(again) and len(again) == len(set(again)) == len(result.candidates) - len(known)


# ------------------------------------------------------------------------------------------ kills
def test_a_line_for_each_evaluation_is_on_the_disk_before_the_next_begins(tmp_path, monkeypatch):
    synced, whole = [], os.fsync
    monkeypatch.setattr(
        journals.os, "fsync", lambda handle: (synced.append(len(lines_of(tmp_path))), whole(handle))
    )
    seen = []

    class Looking(Noting):
        def score(self, widths, images_from, images_to):
            seen.append((len(looked_at(tmp_path)), len(lines_of(tmp_path)), len(synced)))
            return super().score(widths, images_from, images_to)

    monkeypatch.setattr(searching, "Noting", Looking)
    result = small_search(tmp_path)
    assert synced == list(range(len(lines_of(tmp_path)) + 1))  # the first line, and one at a time
    for begun, kept, on_disk in seen:
        assert begun - kept <= 1 and on_disk == kept + 1  # this one alone is open
    first, *rest = map(json.loads, (tmp_path / "journal.jsonl").read_text().splitlines())
    assert first["settings"]["given"] == searching.SETTINGS
    assert {line["hash"] for line in rest} == {first["hash"]}
    found = {tuple(each.widths.items()): each for each in result.candidates}
    for line in rest:
        if line["on"] == "search":
            each = found[tuple(line["widths"].items())]
            assert [line[name] for name in ("cost", "score", "images")] == [
                each.cost,
                each.score,
                each.images,
            ]
    assert {line["on"] for line in rest} == {"search", "measured", "confirm"}  # kept apart


def test_nothing_is_done_twice_when_all_is_done(tmp_path, undisturbed):
    (tmp_path / "journal.jsonl").write_bytes((undisturbed[0] / "journal.jsonl").read_bytes())
    assert_same_end(tmp_path, undisturbed)
    assert not looked_at(tmp_path)


def test_cut_short_anywhere_it_ends_in_the_same(tmp_path, undisturbed):
    whole = (undisturbed[0] / "journal.jsonl").read_bytes()
    ends = [i + 1 for i, letter in enumerate(whole) if letter == ord("\n")]
    lot = random.Random(0)
    cuts = [
        0,
        1,
        ends[0] - 1,
        ends[0],
        ends[0] + 1,
        *lot.sample(range(ends[0], len(whole)), 12),
        len(whole) - 1,
    ]
    for cut in cuts:
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(whole[:cut])
        assert_same_end(folder, undisturbed)


def run_until_killed(processes, folder, after_looks=None, and_s=0.0, torn_after=None):
    """The search in a process of its own; whether it was killed. after_looks: once it has begun to look at so many
    networks, and so many seconds later; it looks at no more than one other, however late the kill comes."""
    most = None if after_looks is None else after_looks + 1
    arguments = (str(folder), 0.005, torn_after, most)
    process = processes.Process(target=searching.search_until_killed, args=arguments)
    process.start()
    if after_looks is not None:
        before = len(looked_at(folder))
        while process.is_alive() and len(looked_at(folder)) < before + after_looks:
            time.sleep(0.002)
        time.sleep(and_s)
        process.kill()
    process.join()
    return process.exitcode != 0


def test_killed_at_ten_moments_it_ends_in_the_same_and_repeats_nothing(processes, tmp_path, undisturbed):
    lot, known, looks = random.Random(1), set(), [1, 2, 3, 4, 5] * 2
    lot.shuffle(looks)
    assert sum(looks) + len(looks) < len(undisturbed[1].candidates)  # so that none comes to its end
    for count in looks:
        begun = len(looked_at(tmp_path))
        assert run_until_killed(processes, tmp_path, after_looks=count, and_s=lot.uniform(0.0, 0.03))
        assert not known & {network for _, network in looked_at(tmp_path)[begun:]}
        assert known <= searched(lines_of(tmp_path))
        assert len(searched(lines_of(tmp_path))) >= len(known) + count - 1  # all but the one that was open
        known = searched(lines_of(tmp_path))
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.parametrize("torn_after", [0, 1, 20, 49])
def test_killed_within_a_line_that_network_alone_is_looked_at_again(
    processes, tmp_path, undisturbed, torn_after
):
    assert run_until_killed(processes, tmp_path, torn_after=torn_after)
    text = (tmp_path / "journal.jsonl").read_bytes()
    assert text and not text.endswith(b"\n") and text.count(b"\n") == torn_after
    assert_same_end(tmp_path, undisturbed)
    counts = [network for _, network in looked_at(tmp_path)]
    assert len(counts) - len(set(counts)) == (1 <= torn_after <= len(undisturbed[1].candidates))


def test_greedy_goes_on_as_well(tmp_path):
    asked = Images(200)

    def found():
        file = tmp_path / "journal.jsonl"
        return search(
            Space(searching.GRAPH), Budget(macs=0.5), asked, how=Greedy(stride=3), journal=file
        ).plain()

    whole = found()
    text = (tmp_path / "journal.jsonl").read_bytes()
    (tmp_path / "journal.jsonl").write_bytes(text[: len(text) // 2])
    before = len(asked.asked)
    assert found() == whole and (tmp_path / "journal.jsonl").read_bytes() == text
    assert 0 < len(asked.asked) - before < 0.6 * before


# ------------------------------------------------------------------------------- another search's
def test_a_journal_of_other_weights_settings_or_network_is_refused(tmp_path):
    file, wider = tmp_path / "journal.jsonl", searching.chain()
    wider[-1] = type(wider[-1])(16, 7)
    asked = {
        "space": Space(searching.GRAPH),
        "budget": Budget(macs=0.5),
        "score": Images(100),
        "how": Evolution(generations=2, population=8, mutants=3, crossovers=3),
        "seed": 1,
        "settings": searching.SETTINGS,
    }

    def begun(**other):
        return search(journal=file, **asked | other)

    begun()
    text = file.read_bytes()
    for other, words in [
        (
            {"settings": searching.SETTINGS | {"weights": "ffff"}},
            "given.weights was '0123abcd', is now 'ffff'",
        ),
        ({"settings": {"weights": "0123abcd"}}, "given.calibration was 500, is now None"),
        ({"space": Space(trace(wider, torch.zeros(1, 8)))}, "shapes was"),
        ({"space": Space(searching.GRAPH, ratios=10)}, "space.0 was"),
        ({"budget": Budget(macs=0.4)}, "budget.macs was 0.5, is now 0.4"),
        ({"budget": Budget(params=0.5)}, "budget.params was None, is now 0.5"),
        ({"seed": 2}, "options.seed was 1, is now 2"),
        (
            {"how": Evolution(generations=2, population=9, mutants=3, crossovers=3)},
            "strategy.population was 8",
        ),
        ({"how": Greedy()}, "strategy.name was 'Evolution', is now 'Greedy'"),
        ({"score": Images(200)}, "images was [100, None], is now [200, None]"),
        ({"score": concave}, "images was [100, None], is now [None, None]"),
        ({"chunks": (50,)}, "options.chunks was"),
        ({"seeds": [{"0": 3}]}, "seeds was []"),
    ]:
        with pytest.raises(UserError) as error:
            begun(**other)
        assert words in str(error.value) and "journal of another search" in str(error.value)
        assert file.read_bytes() == text
    begun()


@pytest.mark.parametrize(
    ("number", "line"),
    [(0, b"{}"), (3, b"{torn"), (3, b"[1]"), (2, b'{"hash": "0"}'), (4, b"\x00\xff"), (1, b"")],
)
def test_a_damaged_journal_is_refused_and_left_as_it_is(tmp_path, undisturbed, number, line):
    lines = (undisturbed[0] / "journal.jsonl").read_bytes().split(b"\n")
    lines[number] = line
    (tmp_path / "journal.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(FileError, match=f"line {number + 1}, is (damaged|not readable).*Delete this line"):
        small_search(tmp_path)
    assert (tmp_path / "journal.jsonl").read_bytes() == b"\n".join(lines)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("images", 2_000_000_000, "25 bytes of correct should be a bit for each of 2000000000 images"),
        ("images", 199, "of the images are correct|should have been evaluated on 200 images"),
        ("correct", "AAAA", "3 bytes of correct should be a bit for each of 200 images"),
        ("correct", "not base64", "is damaged"),
        ("correct", None, "should have been evaluated on 200 images, but has answers for 0"),
        ("score", 0.987, "the score is 0.987, but 0"),
        ("score", "0.5", r"\$.score: Expected float, got str, there is '0.5'"),
        ("widths", {"0": 2.5}, r"\$.widths\['0'\]: Expected int, got float, there is 2.5"),
        ("on", "elsewhere", r"\$.on: Invalid enum value 'elsewhere'"),
        ("cost", None, r"\$.cost: Expected float, got null"),
    ],
)
def test_a_line_that_claims_what_cannot_be_is_refused(tmp_path, undisturbed, key, value, words):
    """Above all one that claims more images than memory holds: nothing is allocated before its bits are counted."""
    lines = (undisturbed[0] / "journal.jsonl").read_text().splitlines()
    number = next(n for n, line in enumerate(lines[1:], 1) if json.loads(line).get("complete"))
    lines[number] = json.dumps(json.loads(lines[number]) | {key: value})
    (tmp_path / "journal.jsonl").write_text("\n".join([*lines, ""]))
    tracemalloc.start()
    with pytest.raises(FileError, match=words):
        small_search(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_line_without_an_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "LONGEST", 1000)
    (tmp_path / "journal.jsonl").write_text("x" * 5000)
    with pytest.raises(FileError, match="line 1, is longer than 1000 bytes"):
        small_search(tmp_path)


def test_lines_of_two_searches_in_one_file_are_refused(tmp_path, undisturbed):
    lines = (undisturbed[0] / "journal.jsonl").read_text().splitlines()
    other = json.loads(lines[5]) | {"hash": "0" * 16}
    (tmp_path / "journal.jsonl").write_text("\n".join([*lines[:5], json.dumps(other), *lines[6:], ""]))
    with pytest.raises(FileError, match=r"line 6, is damaged .the hash of another search"):
        small_search(tmp_path)


def test_what_cannot_be_written_stops_the_search(tmp_path, monkeypatch):
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(FileError, match="could not be read"):
        small_search(tmp_path)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journals.os, "fsync", full)
    with pytest.raises(PrunusError, match=r"could not write .* No space left on device. Free some space"):
        search(Space(searching.GRAPH), Budget(macs=0.5), concave, journal=tmp_path / "other.jsonl")


# -------------------------------------------------------------------------------- two processes
def script_of(folder, name):
    file = folder / "script.py"
    file.write_text(SCRIPT.format(root=ROOT, folder=str(folder), module="tests.lib.searching", name=name))
    return str(file)


def test_two_processes_share_the_work_and_write_the_same_journal(tmp_path, undisturbed):
    launched([script_of(tmp_path, "search_in_ranks")])
    one, two = (tmp_path / f"rank{rank}" for rank in range(2))
    assert (one / "journal.jsonl").read_bytes() == (undisturbed[0] / "journal.jsonl").read_bytes()
    assert not (two / "journal.jsonl").exists()
    expected = repr(undisturbed[1].plain())
    assert (one / "result.txt").read_text() == (two / "result.txt").read_text() == expected
    shares = [[network for _, network in looked_at(each)] for each in (one, two)]
    both = [network for _, network in looked_at(undisturbed[0])]
    assert sorted(shares[0] + shares[1]) == sorted(both)
    assert abs(len(shares[0]) - len(shares[1])) <= len(undisturbed[1].history)


def test_when_one_of_two_dies_the_search_goes_on_later_and_loses_nothing(tmp_path, undisturbed):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
    arguments = [*LAUNCH, script_of(tmp_path, "search_and_lose_one")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert 20 < len(lines_of(tmp_path)) < len(lines_of(undisturbed[0]))
    assert_same_end(tmp_path, undisturbed)


def test_errors_are_raised_in_all_processes(tmp_path):
    for each in ("other", "new"):
        (tmp_path / each).mkdir()
    (tmp_path / "other" / "journal.jsonl").write_text('{"hash": "0", "settings": {"given": {}}}\n')
    launched([script_of(tmp_path, "search_and_fail")])
    told = [(tmp_path / f"told{rank}").read_text() for rank in range(2)]
    own = [
        "from None",
        "from ZeroDivisionError('of process 1 alone')",
    ]  # where it happened the cause is there
    other, failed = told[0].splitlines()
    assert (
        "journal of another search" in other
        and failed == "process 1 failed: ZeroDivisionError: of process 1 alone"
    )
    assert told[1].splitlines() == [other, own[0], failed, own[1]]
