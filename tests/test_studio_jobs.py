"""Jobs of the studio: what their folders tell, whatever happened to their processes."""

import json
import os
import subprocess
import sys

import pytest

from qrlora.studio.jobs import WorkFolder, acquire_job_lock

SLEEPER = "import time; print('up', flush=True); time.sleep(60)"


@pytest.fixture
def work(tmp_path):
    return WorkFolder(tmp_path / "work")


def process(job):
    """A process that holds a job's lock, as the queue starts it."""
    lock = acquire_job_lock(job)
    child = subprocess.Popen([sys.executable, "-c", SLEEPER], pass_fds=[lock], stdout=subprocess.PIPE)
    child.stdout.readline()
    (job.folder / "lock").write_text(str(child.pid))
    os.close(lock)
    return child


def test_a_job_runs_for_as_long_as_its_process_lives_and_kill_9_makes_it_interrupted(work):
    job = work.create("train", "dog", {})
    assert job.state == "waiting"
    child = process(job)
    job.add_event("start", device="cpu")
    job.add_event("step", step=3, steps=9, loss=0.5, left=1.0)
    assert job.state == "running" and job.device == "cpu" and acquire_job_lock(job) is None
    child.kill()
    child.wait()
    child.stdout.close()
    assert job.state == "interrupted" and job.losses == {3: 0.5}
    job.go_on()
    assert job.state == "waiting"


def test_stopping_ends_the_process_or_leaves_the_queue(work):
    waiting, running = work.create("train", "a", {}), work.create("train", "b", {})
    waiting.stop()
    assert waiting.state == "stopped"
    child = process(running)
    running.stop()
    assert child.wait(30) == -15
    child.stdout.close()
    assert running.state == "stopped"
    running.go_on()
    with pytest.raises(ValueError, match="b is waiting: there is nothing to go on with"):
        running.go_on()


def test_a_torn_line_is_no_event_and_the_next_one_is_whole(work):
    job = work.create("train", "dog", {})
    with (job.folder / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "step", "st')
    assert [x["event"] for x in job.events] == ["queued"]
    job.add_event("step", step=1, steps=2, loss=1.0, left=0.0)
    assert [x["event"] for x in job.events] == ["queued", "step"]
    lines = (job.folder / "events.jsonl").read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[-1])["step"] == 1


def test_of_a_step_that_was_done_again_the_later_loss_counts(work):
    job = work.create("train", "dog", {})
    for step, loss in ((1, 1.0), (2, 0.9), (3, 0.8), (2, 0.7)):
        job.add_event("step", step=step, steps=3, loss=loss, left=0.0)
    assert job.losses == {1: 1.0, 2: 0.7, 3: 0.8}


def test_what_is_deleted_lies_in_the_bin_and_comes_back_but_nothing_that_runs(work):
    job = work.create("train", "dog", {})
    child = process(job)
    with pytest.raises(ValueError, match="dog runs: stop it first"):
        work.delete(job)
    child.kill()
    child.wait()
    child.stdout.close()
    work.delete(job)
    assert work.jobs() == [] and [x.id for x in work.in_bin()] == [job.id]
    work.restore(work.in_bin()[0])
    assert [x.id for x in work.jobs()] == [job.id] and work.in_bin() == []
    work.delete(job)
    work.empty_bin()
    assert work.in_bin() == [] and list(work.bin.iterdir()) == []


def test_a_folder_has_one_server_at_a_time(work):
    lock = work.acquire_lock()
    with pytest.raises(ValueError, match="open already"):
        WorkFolder(work.folder).acquire_lock()
    os.close(lock)
    os.close(WorkFolder(work.folder).acquire_lock())


def test_a_folder_that_was_left_half_made_is_no_job(work):
    work.create("train", "dog", {}, {"picture-0.png": b"x"})
    (work.jobs_folder / "0123456789ab").mkdir()
    (work.jobs_folder / "notes").mkdir()
    assert [job.title for job in work.jobs()] == ["dog"]
