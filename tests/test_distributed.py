"""One run in two real processes, as `accelerate launch` starts them, is the run in one."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

import pico
from qrlora.files import load
from qrlora.training import distributed as room
from qrlora.training import train
from qrlora.training.distributed import Processes
from test_training import picture, settings

pytestmark = pytest.mark.processes

# with --cpu accelerate starts one process, whatever their number, unless MPI does; device=cpu is ours to say
LAUNCH = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no".split()
LAUNCH += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]


def launch(folder, port, **changes):
    """Two processes of `qrlora train` on the pico base, started; the output is `two.safetensors`."""
    config = {"base": pico.folder(), "image": picture(folder), "output": folder / "two.safetensors", "device": "cpu"}
    words = [f"{name}={value}" for name, value in {**config, **changes}.items()]
    command = [sys.executable, *LAUNCH, "--main_process_port", str(port), "-m", "qrlora", "train", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def ended(process, seconds=120):
    """(standard output, standard error) of a process that ends in time."""
    try:
        return process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def port():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_two_processes_are_one_with_the_same_batch(tmp_path, port):
    """The learning factor equals to rounding, the frozen one to the last bit, and one file, one bar, one result."""
    process = launch(tmp_path, port, batch_size=4)
    alone = train(settings(tmp_path, batch_size=4))
    out, err = ended(process)
    assert process.returncode == 0, err
    assert out.count("generate with it") == 1 and "trained by 2 processes" in out
    together = load(tmp_path / "two.safetensors")
    assert together.header == alone.header
    for name, pair in together.layers.items():
        assert torch.equal(pair.A, alone.layers[name].A)
        torch.testing.assert_close(pair.B, alone.layers[name].B, rtol=1e-4, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dog.png", "out.safetensors", "two.safetensors"]


def test_two_processes_find_the_same_contrasting_directions(tmp_path, port):
    """Bit for bit. What learns along them is equal in norm only: hardly any row excites some of them, and Adam divides
    their gradients by as little, so that rounding shows in single numbers."""
    process = launch(tmp_path, port, batch_size=4, method="qr-contrast")
    alone = train(settings(tmp_path, batch_size=4, method="qr-contrast"))
    _, err = ended(process)
    assert process.returncode == 0, err
    for name, pair in load(tmp_path / "two.safetensors").layers.items():
        assert torch.equal(pair.A, alone.layers[name].A)
        assert (pair.B - alone.layers[name].B).norm() < 1e-3 * pair.B.norm()


def test_ctrl_c_ends_both_with_one_checkpoint_from_which_one_goes_on(tmp_path, port):
    """The launcher passes the signal on; a person's terminal sends it to all."""
    process = launch(tmp_path, port, batch_size=4, steps=2000, save_every=1)
    state = tmp_path / "two.checkpoint" / "state.safetensors"
    for _ in range(1200):
        if state.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = ended(process)
    assert process.returncode != 0
    done = int(re.search(r"stopped after step (\d+) of 2000", err).group(1))
    seen = []
    config = settings(tmp_path, output=tmp_path / "two.safetensors", batch_size=4, steps=done + 2)
    with pytest.warns(UserWarning, match="processes was 2, is 1.*equal to rounding"):
        train(config, on_step=lambda progress: seen.append(progress.step))
    assert seen == [done + 1, done + 2]


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, monkeypatch):
    from qrlora.training import train_adapter

    monkeypatch.setattr(train_adapter, "init_distributed", lambda device: Processes(0, 2))
    with pytest.raises(ValueError, match="batch_size=3 cannot be shared by 2 processes: use a multiple of 2"):
        train(settings(tmp_path, batch_size=3))


def test_shares_are_the_batch_in_order():
    rows = torch.arange(12).view(6, 2)
    shares = [Processes(k, 3).shard(rows) for k in range(3)]
    assert torch.equal(torch.cat(shares), rows) and {len(x) for x in shares} == {2}


def test_a_process_that_is_gone_is_named_and_not_waited_for(monkeypatch):
    def gone(tensor):
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1\nand much more")

    monkeypatch.setattr(room.distributed, "all_reduce", gone)
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    with pytest.raises(
        OSError, match=r"another process .* has ended \(Connection closed by peer .*\]:1\); the same co"
    ):
        Processes(0, 2).average_gradients([parameter], torch.tensor(1.0), False)


@pytest.mark.parametrize("gpus", [0, 1])
def test_more_processes_than_gpus_are_refused(monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"2 processes, {gpus} GPUs and device=cuda: launch one process for each GPU"):
        room.init_distributed("cuda")


def _told(rank, port, answers):
    from torch import distributed

    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    processes = Processes(rank, 2)
    processes.assert_equal_across_ranks("one basis")
    try:
        processes.assert_equal_across_ranks(f"basis of {rank}")
    except ValueError as error:
        answers.put(str(error))
    processes.barrier()
    distributed.destroy_process_group()


def test_processes_with_different_directions_are_refused(port):
    from torch import multiprocessing

    answers = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_told, (port, answers), nprocs=2)
    for _ in range(2):
        assert not answers.empty()  # `get` would wait for ever for a process that refused nothing
        assert "the processes found different directions" in answers.get()
