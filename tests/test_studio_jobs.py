"""Jobs of the studio: what their folders tell, whatever happened to their processes."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

import pico
from qrlora.cli.arguments import recipe_and_settings
from qrlora.config import TrainConfig, read_recipe
from qrlora.studio import run_pages
from qrlora.studio.generation_queue import GenerationQueue
from qrlora.studio.job_queue import JobQueue
from qrlora.studio.job_worker import run_job, training_settings
from qrlora.studio.jobs import ADAPTER, acquire_job_lock
from qrlora.studio.work_folder import WorkFolder

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
    job.requeue()
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
    running.requeue()
    with pytest.raises(ValueError, match="b is waiting: there is nothing to go on with"):
        running.requeue()


def test_a_job_that_does_not_stop_is_stopped_at_once(work):
    job = work.create("train", "dog", {})
    lock = acquire_job_lock(job)
    deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
    child = subprocess.Popen([sys.executable, "-c", deaf], pass_fds=[lock], stdout=subprocess.PIPE)
    child.stdout.readline()
    os.pwrite(lock, str(child.pid).encode(), 0)
    os.close(lock)
    job.add_event("start", device="cpu")
    assert not job.stopping
    job.stop()
    assert job.stopping and job.state == "running"
    job.stop(at_once=True)
    assert child.wait(30) == -9
    child.stdout.close()
    assert job.state == "stopped"
    job.requeue()
    job.add_event("start", device="cpu")
    assert not job.stopping


def test_a_job_that_is_stopped_before_it_has_a_process_does_not_run(work):
    job = work.create("check", "dog", {"adapters": ["none"]})
    job.add_event("start", device="files")
    job.add_event("stop")
    run_job(job, "files")
    assert job.state == "stopped"


def test_after_a_power_failure_that_took_every_event_a_job_can_go_on(work):
    job = work.create("train", "dog", {})
    (job.folder / "events.jsonl").write_bytes(b'{"event": "que')
    again = WorkFolder(work.folder).jobs()[0]
    assert again.state == "interrupted"
    again.requeue()
    assert again.state == "waiting"


def test_what_is_pressed_in_several_windows_at_once_leaves_a_whole_job(work):
    job = work.create("train", "dog", {})
    gate = threading.Barrier(12)

    def press(number):
        gate.wait()
        for k in range(20):
            with contextlib.suppress(ValueError, FileNotFoundError):  # what a page says
                [job.stop, job.requeue, lambda: work.delete(job), lambda: [work.restore(x) for x in work.in_bin()]][
                    (number + k) % 4
                ]()

    with ThreadPoolExecutor(12) as windows:
        list(windows.map(press, range(12)))
    (left,) = [*work.jobs(), *work.in_bin()]
    assert left.id == job.id and left.state in ("waiting", "stopped")
    lines = (left.folder / "events.jsonl").read_text().splitlines()
    assert len(left.events) == len(lines) > 1


def test_each_device_has_one_training_at_a_time_and_the_others_wait_their_turn(work):
    drawings = GenerationQueue(work, "cpu")
    queue = JobQueue(work, ["cpu", "cpu:1"], drawings)
    jobs = [work.create("train", f"dog {k}", {"train": {}, "crop": [], "pictures": []}) for k in range(3)]
    jobs += [work.create("check", f"check {k}", {"adapters": []}) for k in range(2)]
    queue.start_waiting_jobs()
    assert [job.device for job in jobs] == ["cpu:1", "cpu", "", "files", ""]
    queue.start_waiting_jobs()
    assert [job.state for job in jobs[:3]] == ["running", "running", "waiting"], "a process needs seconds for torch"
    assert drawings.paused, "pictures wait while their device is used"
    jobs[0].stop(at_once=True)
    for child in queue._children[:1]:
        child.wait(30)
    queue.start_waiting_jobs()
    assert jobs[0].state == "stopped" and jobs[2].device == "cpu:1"
    for job in jobs:
        job.stop(at_once=True)
    for child in queue._children:
        child.wait(30)


def test_what_has_ended_is_not_read_again_while_nothing_happens_and_is_when_something_does(work):
    """So that an idle studio with many runs takes next to nothing of the processor."""
    jobs, opened, on = [work.create("train", f"dog {k}", {}) for k in range(3)], [], [True]
    for job, event in zip(jobs, ("end", "stopped", "step"), strict=True):
        job.add_event(event)
    queue = JobQueue(work, ["cpu"], GenerationQueue(work, "cpu"))
    assert not queue.start_waiting_jobs()
    seen = queue.seen
    sys.addaudithook(lambda event, told: opened.append(told[0]) if on[0] and event == "open" else None)
    assert not queue.start_waiting_jobs()
    on[0] = False
    assert opened == [] and queue.seen == seen
    assert [seen[job.id][0] for job in jobs] == ["done", "stopped", "interrupted"]
    for job in WorkFolder(work.folder).jobs()[:2]:  # another's eyes, another's pen
        if job.state != "done":
            job.requeue()
    again = process(jobs[2])
    jobs[2].add_event("start", device="cpu")
    queue.devices = []
    assert queue.start_waiting_jobs()
    assert [queue.seen[job.id][0] for job in jobs] == ["done", "waiting", "running"]
    again.kill()
    again.wait()
    again.stdout.close()
    assert jobs[2].state == "interrupted"


def test_many_looks_at_once_never_take_each_other_for_a_running_job(work):
    job = work.create("train", "dog", {})
    job.add_event("step")

    def look(number):
        return [job.stop() if number % 2 else job.running for _ in range(300)]

    with ThreadPoolExecutor(4) as pages:
        looks = list(pages.map(look, range(4)))
    assert not any(map(any, looks)) and job.last_event["event"] == "step", "no stop of what does not run"


def test_the_last_event_is_the_one_after_which_only_warnings_came_however_long_it_is(work):
    job = work.create("train", "dog", {})
    job.add_event("end", result={"why": "x" * 100_000})
    assert job.facts["why"] == "x" * 100_000
    job.add_event("warning", text="late")
    assert job.state == "done" and WorkFolder(work.folder).jobs()[0].facts["why"] == "x" * 100_000


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


def done(work, kind, title, settings, files=None):
    """What a job finds that is run in this process."""
    job = work.create(kind, title, settings, files or {})
    with warnings.catch_warnings():  # a job's process has its own way with warnings
        run_job(job, "files")
    assert job.state == "done"
    return job


def test_adapters_are_read_compared_checked_and_merged_by_jobs(work, studio):
    read = [
        done(work, "import", name, {"file": name}, {ADAPTER: (studio / f"{name}.safetensors").read_bytes()})
        for name in ("dog", "cat")
    ]
    assert [job.facts["role"] for job in read] == ["content", "style"] and read[0].facts["rank"] == 4
    both = {"adapters": [job.id for job in read]}
    compared = done(work, "compare", "dog and cat", {**both, "names": ["dog", "cat"]})
    assert (compared.folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert all(-1 <= value <= 1 for _, value in compared.facts["rows"]) and compared.facts["rows"]
    rows = done(work, "check", "dog", {"adapters": [read[0].id]}).facts["tools"]
    assert {x["tool"]: x["loaded"] == x["keys"] > 0 for x in rows}["diffusers"]
    merged = done(work, "merge", "both", {**both, "strengths": [1.0, 0.5], "rule": "sum"})
    assert merged.facts["role"] == "merged" and len(merged.facts["tools"]) == len(rows)


def test_a_file_that_is_no_adapter_fails_with_the_name_that_the_person_gave_it(work):
    job = work.create("import", "holiday", {}, {ADAPTER: (2).to_bytes(8, "little") + b"{}"})
    with warnings.catch_warnings(), pytest.raises(ValueError):
        run_job(job, "files")
    assert job.state == "failed" and job.last("failed")["text"].startswith("holiday")


def test_what_a_training_takes_is_counted_by_a_job(work):
    settings = {"base": str(pico.folder()), "settings": {"rank": 2}, "key": "", "device": "cpu"}
    facts = done(work, "estimate", "pico", settings).facts
    (chosen,) = [row for row in facts["rows"] if row["chosen"]]
    assert chosen["here"] and chosen["weights"] == "float32" and facts["rank"] == 2 and facts["device"] == "cpu"


@pytest.mark.parametrize("crop", [[], [[5, 0, 30], [0, 5, 30]]])
def test_the_command_line_of_a_run_means_the_settings_of_the_run(work, crop):
    train = {"role": "style", "base": "tiny-flux", "trigger": "<s>", "prompt": "a cat in <s> style", "offload": True}
    pictures = [{"picture": str(k)} for k in range(2 if crop else 1)]
    files = {f"picture-{k}.png": b"" for k in range(2)}
    job = work.create("train", "ink", {"train": train, "crop": crop, "pictures": pictures}, files)
    program, verb, *words = shlex.split(run_pages.run_command_line(job))
    assert (program, verb) == ("qrlora", "train")
    assert read_recipe(*recipe_and_settings(words)) == TrainConfig(**training_settings(job))
