"""One writer a folder: the second is refused by name, a killed one's lock is taken over by one alone."""

import errno
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from prunus import cli
from prunus.cli.folders import new_folder
from prunus.errors import FileError, PrunusError, UserError
from prunus.files import read_json, write_json
from prunus.run import RunFolder, lock, sole_writer
from tests.lib.programs import ARGUMENTS, held_at, program
from tests.lib.writers import compete, leave_locks

ROUNDS = 20
HERE = rf"process {os.getpid()} on {socket.gethostname()}"


def put(folder, **changes):
    """A lock in the folder: this process's, with changes."""
    write_json(folder / lock.NAME, asdict(replace(lock.name_process(), **changes)))


def only_file(folder):
    return [path.name for path in folder.iterdir()]


def assert_one_wins(folders, said):
    for folder, ((one, words), (other, others)) in zip(folders, said, strict=True):
        winner, refusal = (one, others) if words == "won" else (other, words)
        assert {words, others} == {"won", refusal} and refusal != "won"
        assert f"process {winner} on {socket.gethostname()}" in refusal
        assert read_json(folder / "stages" / "base.json")["by"] == winner
        assert sorted(only_file(folder)) == ["log.jsonl", "settings.json", "stages"]


@pytest.mark.timeout(300)
def test_of_two_runs_begun_at_once_one_wins_and_the_result_is_its_own(tmp_path):
    folders = [tmp_path / str(number) for number in range(ROUNDS)]
    assert_one_wins(folders, compete(folders, resume=False))


@pytest.mark.timeout(300)
def test_of_two_that_take_over_from_a_killed_run_one_wins(tmp_path):
    folders = [tmp_path / str(number) for number in range(ROUNDS)]
    leave_locks(folders)
    assert_one_wins(folders, compete(folders, resume=True))


@pytest.mark.timeout(600)
def test_beside_a_live_program_others_are_refused_and_after_a_kill_it_goes_on(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = [*ARGUMENTS[:5], "--base-epochs", "1", "--epochs", "1", "--out", str(out)]
    with held_at(arguments, out / "stages" / "base.json") as process:
        for more in ([], ["--resume"]):
            assert cli.main([*arguments, *more]) == 2
            said = capsys.readouterr().err
            assert f"is being written by process {process.pid} on {socket.gethostname()}" in said
        process.kill()
    assert process.returncode == -signal.SIGKILL and (out / lock.NAME).exists()
    program([*arguments, "--resume"])
    assert (out / "result.json").exists() and not (out / lock.NAME).exists()


def test_the_lock_is_there_as_long_as_it_is_held(tmp_path):
    with sole_writer(tmp_path / "run"):
        assert only_file(tmp_path / "run") == [lock.NAME]
        with pytest.raises(UserError, match=f"is being written by {HERE}"), sole_writer(tmp_path / "run"):
            pass
    assert only_file(tmp_path / "run") == []


def damage(folder):
    (folder / lock.NAME).write_text("")


@pytest.mark.parametrize("replace_lock", [damage, put])
def test_a_lock_that_is_no_longer_its_own_is_left_and_hides_no_error(tmp_path, replace_lock):
    with pytest.raises(ValueError, match="the run's own"), sole_writer(tmp_path):
        replace_lock(tmp_path)
        raise ValueError("the run's own")
    assert only_file(tmp_path) == [lock.NAME]


def test_a_lock_whose_process_has_ended_is_taken_over(tmp_path):
    gone = leave_locks([tmp_path])
    assert lock.read(tmp_path / lock.NAME).pid == gone
    with sole_writer(tmp_path):
        assert lock.read(tmp_path / lock.NAME).pid == os.getpid()
    assert only_file(tmp_path) == []


def test_a_lock_whose_process_nobody_has_waited_for_is_taken_over(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    put(tmp_path, pid=process.pid, start=lock.read_start(process.pid))
    with pytest.raises(UserError, match=f"process {process.pid} "):
        lock.check_free(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    lock.check_free(tmp_path)
    process.communicate()
    lock.check_free(tmp_path)


def test_another_process_of_the_same_number_does_not_hold_the_lock(tmp_path):
    put(tmp_path, start="1 before")
    with sole_writer(tmp_path):
        assert lock.read(tmp_path / lock.NAME).start == lock.read_start(os.getpid())


def test_a_lock_of_another_system_stays_until_a_person_removes_it(tmp_path):
    put(tmp_path, host="far", system="far away", pid=2**22 + 1)
    with pytest.raises(UserError, match=r"locked by process 4194305 on far, .* remove .*/\.lock and repeat"):
        RunFolder(tmp_path, {"seed": 0})
    (tmp_path / lock.NAME).unlink()
    with RunFolder(tmp_path, {"seed": 0}):
        pass


def test_a_process_that_cannot_be_judged_keeps_its_lock(tmp_path, monkeypatch):
    put(tmp_path, start="1 before")
    monkeypatch.setattr(lock, "read_start", lambda pid: None)
    with pytest.raises(UserError, match="is being written by"):
        lock.check_free(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_that_names_nobody_is_refused_with_what_to_do(tmp_path, text):
    (tmp_path / lock.NAME).write_text(text)
    with pytest.raises(FileError, match=r"does not say by which process.* remove"), sole_writer(tmp_path):
        pass


@pytest.mark.parametrize("damage", [{"pid": -1}, {"pid": "1"}, {"token": "../../x"}, {"start": None}])
def test_a_lock_with_a_damaged_field_names_nobody(tmp_path, damage):
    put(tmp_path, **damage)
    with pytest.raises(FileError, match="does not say by which process"), sole_writer(tmp_path):
        pass


def test_whoever_comes_late_to_a_stale_lock_finds_the_new_one(tmp_path, monkeypatch):
    """Between reading a stale lock and claiming it, another process takes it over."""
    put(tmp_path, start="1 before")
    whole, late = lock.read, []

    def read(path):
        found = whole(path)
        if not late:
            late.append(found)
            put(tmp_path)
        return found

    monkeypatch.setattr(lock, "read", read)
    with pytest.raises(UserError, match=HERE):
        lock.take(tmp_path / lock.NAME)
    assert only_file(tmp_path) == [lock.NAME]


def test_a_taker_that_was_killed_does_not_block_the_next(tmp_path):
    put(tmp_path, start="1 before")
    stale = lock.read(tmp_path / lock.NAME)
    write_json(
        tmp_path / f"{lock.NAME}.{stale.token}", asdict(replace(lock.name_process(), start="2 before"))
    )
    with sole_writer(tmp_path):
        assert only_file(tmp_path) == [lock.NAME]


def test_where_there_are_no_hard_links_creation_is_exclusive(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with sole_writer(tmp_path):
        with pytest.raises(UserError, match=HERE), sole_writer(tmp_path):
            pass
    assert only_file(tmp_path) == []


def test_a_request_that_nfs_repeats_is_taken_for_done(tmp_path, monkeypatch):
    link = os.link

    def twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    with sole_writer(tmp_path):
        assert lock.read(tmp_path / lock.NAME).pid == os.getpid()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PrunusError, match="could not write"), sole_writer(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize("command", ["report", "export", "bench"])
def test_commands_that_write_into_a_run_wait_for_no_one(capsys, digits_run, command):
    before = sorted(only_file(digits_run))
    with sole_writer(digits_run):
        assert cli.main([command, str(digits_run)]) == 2
    assert f"is being written by {HERE}" in " ".join(capsys.readouterr().err.split())
    assert sorted(only_file(digits_run)) == before


def test_a_run_that_ended_between_look_and_lock_is_not_overwritten(tmp_path):
    late = RunFolder(tmp_path, {"seed": 0})
    with RunFolder(tmp_path, {"seed": 0}) as first:
        first.stage("base", dict)
    with pytest.raises(UserError, match="is not empty"), late:
        pass
    assert not (tmp_path / lock.NAME).exists()


def test_two_demos_that_look_for_a_new_folder_at_once_get_two(tmp_path):
    with new_folder(tmp_path / "runs" / "demo") as one, new_folder(tmp_path / "runs" / "demo") as two:
        (one / "file").touch()
        assert [one.name, two.name] == ["demo", "demo-2"]
    assert only_file(tmp_path / "runs") == ["demo"]
