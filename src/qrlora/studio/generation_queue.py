"""Images that pages ask for wait here; each is generated once, by a worker process that keeps its base open."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .work_folder import WorkFolder


class GenerationQueue:
    """The pictures of a folder, those that wait, and the process that draws.

    A picture's id is the digest of all that it depends on, so that one that was drawn before is there at once.
    """

    def __init__(self, work: WorkFolder, device: str):
        self.work, self.device = work, device
        self.failed: dict[str, str] = {}
        self.count = 0
        """How many were drawn since the start."""
        self.on_change: Callable[[], Any] = lambda: None
        """Called when one was drawn, or the queue was paused."""
        self.closed = True
        """Whether there is no process, and none will be while paused."""
        self._waiting: dict[str, Mapping[str, Any]] = {}
        self._change, self._paused, self._closing = threading.Condition(), False, False
        self._child: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._generate_until_closed, name="drawings")

    def start(self) -> None:
        """Draw until `close`."""
        self._thread.start()

    def close(self) -> None:
        """End the queue of images and its worker process."""
        with self._change:
            self._closing = True
            self._change.notify_all()
            if self._child is not None:
                self._child.kill()  # whatever it draws
        self._thread.join()

    def pause(self, paused: bool) -> None:
        """Free the device for a training, which is done once `closed`; or generate images again."""
        with self._change:
            self._paused = paused
            self._change.notify_all()

    @property
    def paused(self) -> bool:
        return self._paused

    def request(self, wanted: Sequence[Mapping[str, Any]], first: bool = False) -> None:
        """Queue images to generate, unless they are there or wait already; before all others, or after them.

        A picture that is wanted first replaces those wanted first before that nobody waits for any more: a slider that
        goes on moving asks for one after the other.
        """
        with self._change:
            new = {generation_id(x): x for x in wanted}
            for name in new:
                self.failed.pop(name, None)
            new = {name: x for name, x in new.items() if not self.is_generated(name)}
            if first:
                others = {name: x for name, x in self._waiting.items() if not x["first"]}
                self._waiting = {**{name: {**x, "first": True} for name, x in new.items()}, **others}
            else:
                self._waiting |= {name: {**x, "first": False} for name, x in new.items() if name not in self._waiting}
            self._change.notify_all()

    def is_generated(self, name: str) -> bool:
        """Whether a picture is drawn."""
        return (self.work.drawings / f"{name}.png").is_file()

    def state(self, name: str) -> str:
        """The state of an image: "there", "waiting", "unknown", or why it could not be generated."""
        if self.is_generated(name):
            return "there"
        return self.failed.get(name) or ("waiting" if name in self._waiting else "unknown")

    def _generate_until_closed(self) -> None:
        """The queue's thread: have the worker generate what waits, and end the worker while the queue is paused."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closing or self._paused or self._waiting)
                if self._closing or self._paused:
                    wanted = ("", {})
                else:
                    name = next(iter(self._waiting))
                    wanted, self.closed = (name, self._waiting[name]), False
            if not wanted[0]:
                _end_worker(self._child)
                with self._change:
                    self._child, self.closed = None, True
                    self.on_change()
                    self._change.wait_for(lambda: self._closing or not self._paused)
                    if self._closing:
                        return
                continue
            with self._change:
                if self._child is None or self._child.poll() is not None:
                    self._child = self._start_worker()
            self._generate(self._child, *wanted)

    def _start_worker(self) -> subprocess.Popen[str]:
        """Start the worker process that generates the images of this queue."""
        words = [sys.executable, "-m", "qrlora.studio.generation_worker", str(self.work.folder), self.device]
        log = (self.work.folder / "drawings.log").open("ab")
        with log:
            return subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )

    def _generate(self, child: subprocess.Popen[str], name: str, wanted: Mapping[str, Any]) -> None:
        """Have the worker generate one image, and wait for it."""
        assert child.stdin is not None and child.stdout is not None
        request = {key: value for key, value in wanted.items() if key != "first"}
        try:
            print(json.dumps({"name": name, **request}), file=child.stdin, flush=True)
            answer = json.loads(child.stdout.readline() or '{"failed": "the drawing process died: see drawings.log"}')
        except BrokenPipeError:
            answer = {"failed": "the drawing process died: see drawings.log"}
        with self._change:
            self._waiting.pop(name, None)
            self.count += 1
            if "failed" in answer:
                self.failed[name] = answer["failed"]
        self.on_change()


def generation_id(wanted: Mapping[str, Any]) -> str:
    """The id of a picture: the digest of its base, adapters, strengths, prompt, seed and all else."""
    inputs = {key: value for key, value in wanted.items() if key != "first"}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:24]


def _end_worker(child: subprocess.Popen[str] | None) -> None:
    """End the worker process of the queue."""
    if child is None:
        return
    assert child.stdin is not None and child.stdout is not None
    child.stdin.close()
    child.terminate()
    child.wait()
    child.stdout.close()
