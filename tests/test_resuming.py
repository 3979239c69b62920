"""A checkpoint is accepted where the run that made it would be repeated, and nowhere else."""

import contextlib
import copy
import dataclasses
import errno
import functools
import hashlib
import json
import math
import os
import pty
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image, PngImagePlugin

import pico
from qrlora.basis import Basis
from qrlora.config import TrainConfig
from qrlora.families import open_base
from qrlora.files import load
from qrlora.image_loading import load_image
from qrlora.injection import apply, detach, set_strengths
from qrlora.safetensors_files import read_safetensors, write_safetensors
from qrlora.training import checkpoint, train, trainable_adapter
from qrlora.training.run_identity import numeric_environment, run_identity
from test_training import launch, picture, settings, steps_until

METHODS = ("qr", "lora", "ortha", "olora", "peft:loha")
FAMILIES = tuple(pico.BASES)


class Killed(Exception):
    pass


def killed_after(step):
    def act(progress):
        if progress.step == step:
            raise Killed

    return act


def begun(config, base, step=3):
    """Stop a run after a step, with a checkpoint (of save_every=1) behind it."""
    with pytest.raises(Killed):
        train(config, base=base, on_step=killed_after(step))
    return config


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def goes_on(config, base):
    """The steps that the same command does when it is given again."""
    seen = []
    train(config, base=base, on_step=lambda progress: seen.append(progress.step))
    return seen


def weight(part, name=""):
    """One number of a part of the base is another; of the first tensor, or of one that ends in a name."""

    @contextlib.contextmanager
    def change(base):
        state = getattr(base.pipe, part).state_dict()
        tensor = next(x for key, x in state.items() if key.endswith(name) and x.is_floating_point())
        before = tensor.clone()
        tensor.view(-1)[-1] += 0.25
        yield
        tensor.copy_(before)

    return change


def configured(part, **changes):
    """Entries of a part's configuration are others."""

    @contextlib.contextmanager
    def change(base):
        owner = getattr(base.pipe, part)
        before = owner._internal_dict
        owner._internal_dict = type(before)({**before, **changes})
        yield
        owner._internal_dict = before

    return change


@contextlib.contextmanager
def other_tokenizer(base):
    """The tokenizer knows two words by each other's numbers."""
    from tokenizers import Tokenizer

    before = base.pipe.tokenizer
    base.pipe.tokenizer = copy.deepcopy(before)
    told = json.loads(before.backend_tokenizer.to_str())
    words = told["model"]["vocab"]
    words["dog</w>"], words["a</w>"] = words["a</w>"], words["dog</w>"]
    base.pipe.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(told))
    yield
    base.pipe.tokenizer = before


@contextlib.contextmanager
def uncropped(base):
    """The base no longer conditions on how its images were cropped."""
    base.always_uncropped = True
    yield
    base.always_uncropped = False


OTHER_BASES = {
    "a trained weight": ("sdxl", weight("unet", "attn1.to_q.weight"), "unet"),
    "a weight beside": ("sdxl", weight("unet", "conv_in.bias"), "unet"),
    "a norm": ("flux", weight("transformer", "norm_q.weight"), "transformer"),
    "the VAE": ("sdxl", weight("vae"), "vae"),
    "a text encoder": ("sd3", weight("text_encoder_3"), "text_encoder_3"),
    "a tokenizer": ("sdxl", other_tokenizer, "tokenizer"),
    "the scale of latents": ("sd3", configured("vae", scaling_factor=2.0), "vae"),
    "the prediction type": ("sdxl", configured("scheduler", prediction_type="v_prediction"), "noising"),
    "zero SNR": ("sdxl", configured("scheduler", rescale_betas_zero_snr=True), "noising"),
    "betas": ("sdxl", configured("scheduler", beta_end=0.02), "noising"),
    "trained betas": ("sdxl", configured("scheduler", trained_betas=[0.01] * 1000), "noising"),
    "the number of times": ("sdxl", configured("scheduler", num_train_timesteps=500), "noising"),
    "the flow's shift": ("sd3", configured("scheduler", shift=1.5), "noising"),
    "size and crop": ("sdxl", uncropped, "picture"),
}


@pytest.fixture(scope="module")
def bases():
    return {family: open_base(pico.folder(family), "cpu") for family in FAMILIES}


def test_checkpoints_of_earlier_versions_know_their_image(bases, tmp_path):
    """Written out as version 0.1 wrote it: a checkpoint holds this digest, and a run that goes on compares it."""
    Image.new("RGB", (40, 20), (9, 99, 200)).save(tmp_path / "wide.png")
    image = load_image(tmp_path / "wide.png", 16)
    text = "(16, 16) Framing(original=(20, 40), corner=(0, 8), target=(16, 16))"
    digest = hashlib.sha256(text.encode() + image.image.tobytes()).hexdigest()[:16]
    config = TrainConfig(image="wide.png", output="a")
    assert run_identity(config, bases["sdxl"], [image], ["a <c>"])["picture"] == digest


EACH = [(what, "lora") for what in OTHER_BASES] + [("a weight beside", method) for method in METHODS[1:]]


@pytest.mark.parametrize(("what", "method"), EACH)
def test_a_checkpoint_of_another_base_is_refused_with_the_part_that_differs(tmp_path, bases, what, method):
    """The change is of that part alone; without it the run goes on."""
    family, change, named = OTHER_BASES[what]
    base = bases[family]
    config = begun(settings(tmp_path, method=method, steps=3, save_every=1, rank=2), base, step=2)
    with change(base), pytest.raises(ValueError, match=rf"holds the checkpoint of another run \((.* )?{named} was"):
        train(config, base=base)
    assert goes_on(config, base) == [3]


def test_adapters_that_the_base_wears_count_with_their_strengths(tmp_path, bases):
    base = bases["sdxl"]
    other = train(settings(tmp_path, seed=3, output=tmp_path / "other.safetensors"), base=base)
    apply(base.model, other, "other")
    try:
        config = begun(settings(tmp_path, save_every=1), base)
        set_strengths(base.model, {"other": 0.5})
        with pytest.raises(ValueError, match="another run .adapters worn was"):
            train(config, base=base)
        set_strengths(base.model, {"other": 1.0})
        assert goes_on(dataclasses.replace(config, steps=4), base) == [4]
    finally:
        detach(base.model, "other")


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_but_the_process_of_a_scheduler_counts(tmp_path, bases, family):
    """Another sampler of the same process, and whatever else it says of sampling, train alike."""
    from diffusers import FlowMatchHeunDiscreteScheduler, HeunDiscreteScheduler

    base = bases[family]
    before = base.pipe.scheduler
    config = begun(settings(tmp_path, save_every=1), base)
    if "beta_schedule" in before.config:
        base.pipe.scheduler = HeunDiscreteScheduler.from_config(before.config, timestep_spacing="trailing")
    else:
        shift = 1.0 if before.config.use_dynamic_shifting else before.config.shift
        base.pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=shift)
    try:
        assert goes_on(config, base) == [4, 5, 6]
    finally:
        base.pipe.scheduler = before


def test_names_of_files_stand_for_nothing(tmp_path, bases):
    """The base's folder and the picture have moved, the picture was saved again, recomputing is on: the same bytes."""
    whole = train(settings(tmp_path), base=bases["sdxl"])
    config = begun(settings(tmp_path, save_every=1, output=tmp_path / "again.safetensors"), bases["sdxl"])
    shutil.copytree(pico.folder(), tmp_path / "moved")
    told = PngImagePlugin.PngInfo()
    told.add_text("comment", "saved again")
    Image.open(config.image).save(tmp_path / "other.png", pnginfo=told, compress_level=1)
    places = {"base": str(tmp_path / "moved"), "image": str(tmp_path / "other.png"), "gradient_checkpointing": True}
    seen = []
    again = train(dataclasses.replace(config, **places), on_step=lambda progress: seen.append(progress.step))
    assert seen == [4, 5, 6]
    for name, pair in again.layers.items():
        torch.testing.assert_close(pair.B, whole.layers[name].B, rtol=1e-4, atol=1e-6)
    assert "gradient_checkpointing" not in again.header.config


STEPS = [  # decay, steps of the run that was stopped after 3, steps asked for, whether the first three had equal rates
    (0.0, 6, 9, True),
    (0.5, 6, 12, True),
    (0.5, 6, 3, False),
    (1.0, 6, 9, False),
]


@pytest.mark.parametrize(("lr_decay", "then", "now", "accepted"), STEPS)
def test_other_steps_are_accepted_as_long_as_the_rate_was_the_same(tmp_path, bases, lr_decay, then, now, accepted):
    """What is accepted ends in the bytes of a run that had so many steps from the start."""
    config = begun(settings(tmp_path, lr_decay=lr_decay, steps=then, save_every=1), bases["sdxl"])
    other = dataclasses.replace(config, steps=now)
    if not accepted:
        with pytest.raises(ValueError, match=f"steps was {then}, is {now}, and by step 3 the learning rate fell"):
            train(other, base=bases["sdxl"])
        return
    assert goes_on(other, bases["sdxl"]) == list(range(4, now + 1))
    found = (tmp_path / "out.safetensors").read_bytes()
    (tmp_path / "out.safetensors").unlink()
    train(other, base=bases["sdxl"])
    assert (tmp_path / "out.safetensors").read_bytes() == found


def turned(real, *how, **named):
    """The basis that another kind of device might have found: the same spans, other axes, other signs."""
    basis = real(*how, **named)
    turns = {rank: torch.linalg.qr(torch.randn(rank, rank, dtype=torch.float64)).Q for rank in {basis.rank}}
    return Basis({x: (Q.double() @ turns[Q.shape[1]]).float() for x, Q in basis.Q.items()}, basis.rank, basis.side, 0.5)


DIRECTED = ["qr", "qr-output", "qr-triangular", "qr-direct", "pissa", "qr-contrast", "peft:vera"]


@pytest.mark.parametrize("method", DIRECTED)
def test_on_another_kind_of_device_a_run_goes_on_with_its_own_directions_and_says_so(
    tmp_path, bases, monkeypatch, method
):
    """There others are found: turned within their span, or drawn anew. Here the rest is computed as it was, so that the
    bytes are equal, the header's digest of the basis included."""
    config = settings(tmp_path, method=method, save_every=1, rank=3)
    train(config, base=bases["sdxl"])
    whole = (tmp_path / "out.safetensors").read_bytes()
    (tmp_path / "out.safetensors").unlink()
    begun(config, bases["sdxl"])

    def compute_contrast_directions(*how, real=trainable_adapter.compute_contrast_directions):
        return {x: -Q.flip(1) for x, Q in real(*how).items()}

    def initialise_peft(*how, real=trainable_adapter.initialise_peft):
        put = real(*how)
        assert put.frozen_tensors()
        for projection in put.frozen_tensors().values():
            projection.data.neg_()
        return put

    real = trainable_adapter.cached_basis
    monkeypatch.setattr(trainable_adapter, "cached_basis", lambda *how, **named: turned(real, *how, **named))
    monkeypatch.setattr(trainable_adapter, "compute_contrast_directions", compute_contrast_directions)
    monkeypatch.setattr(trainable_adapter, "initialise_peft", initialise_peft)
    monkeypatch.setattr(
        "qrlora.training.train_adapter.numeric_environment",
        lambda *of: {**numeric_environment(*of), "device": "Another GPU"},
    )
    with pytest.warns(UserWarning, match="begun elsewhere .device was '.*', is 'Another GPU'.: equal to rounding"):
        train(config, base=bases["sdxl"])
    assert (tmp_path / "out.safetensors").read_bytes() == whole


@pytest.mark.processes
def test_with_other_instructions_of_the_processor_a_run_goes_on_to_rounding(tmp_path, bases):
    """Begun with one set, in a process of its own, and ended with another; compared with a run with that one alone."""
    here = torch.backends.cpu.get_cpu_capability()
    other = "avx2" if here == "DEFAULT" else "default"
    process = launch(tmp_path, ATEN_CPU_CAPABILITY=other)
    steps_until(process, 3)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    config = settings(tmp_path, steps=60, batch_size=1)
    with pytest.warns(UserWarning, match=f"device was '.*{other.upper()}.*', is '.*{here}"):
        mixed = train(config, base=bases["sdxl"])
    whole = train(dataclasses.replace(config, output=str(tmp_path / "whole.safetensors")), base=bases["sdxl"])
    for name, pair in mixed.layers.items():
        update = whole.layers[name].B @ whole.layers[name].A
        assert torch.dist(pair.B @ pair.A, update) < 1e-2 * update.norm()


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_polite_end_leaves_a_checkpoint(tmp_path, bases, number):
    process = launch(tmp_path, before="import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)")
    steps_until(process, 3)
    process.send_signal(number)
    told = [int(line) for line in process.stdout]
    assert "KeyboardInterrupt: stopped after step" in process.stderr.read() and process.wait() != 0
    config = settings(tmp_path, steps=60, batch_size=1, save_every=1)
    assert goes_on(config, bases["sdxl"])[0] == (told[-1] if told else 3) + 1


@pytest.mark.processes
def test_a_terminal_that_is_closed_leaves_a_checkpoint(tmp_path, bases):
    """A hangup, and from then on no word can be written; nothing but the hangup writes a checkpoint."""
    mine, theirs = pty.openpty()
    words = [f"base={pico.folder()}", f"image={picture(tmp_path)}", f"output={tmp_path / 'out.safetensors'}"]
    command = [sys.executable, "-m", "qrlora", "train", *words, "device=cpu", "steps=100000"]
    hears = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may not
    told = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen(command, **told, start_new_session=True, preexec_fn=hears)
    os.close(theirs)
    shown = b""
    while b"/100000" not in shown:
        shown += os.read(mine, 4096)
    os.close(mine)
    process.send_signal(signal.SIGHUP)  # a session's first process gets it from the system; this one has no such tie
    assert process.wait() != 0
    config = settings(tmp_path, steps=100000)
    with pytest.raises(Killed):
        train(config, base=bases["sdxl"], on_step=lambda p: (_ for _ in ()).throw(Killed) if p.step > 1 else None)


@pytest.mark.processes
def test_under_nohup_a_hangup_does_not_end_a_run(tmp_path):
    """The signal is ignored before the program begins, and stays so."""
    process = launch(tmp_path, before="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    steps_until(process, 3)
    process.send_signal(signal.SIGHUP)
    assert process.stdout.read().split()[-1] == "60" and process.wait() == 0
    assert (tmp_path / "out.safetensors").exists()


def test_a_signal_after_the_last_update_does_not_lose_the_adapter(tmp_path, bases, monkeypatch):
    """Whatever is left to do, taking the adapter off the model and writing it, is done."""
    from qrlora.training import train_adapter as room

    real = room.save_adapter
    monkeypatch.setattr(room, "save_adapter", lambda *what: os.kill(os.getpid(), signal.SIGTERM) or real(*what))
    train(settings(tmp_path), base=bases["sdxl"])
    assert load(tmp_path / "out.safetensors").layers


@pytest.mark.parametrize("save_every", [0, 1])
def test_a_finished_run_leaves_its_adapter_alone(tmp_path, bases, save_every):
    """Though a killed process has left half an adapter and half a checkpoint."""
    config = settings(tmp_path, save_every=save_every)
    for folder, name in ((tmp_path, "out.safetensors"), (config.checkpoints, "state.safetensors")):
        folder.mkdir(exist_ok=True)
        (folder / f".{name}.01234567.partial").write_bytes(b"half")
    train(config, base=bases["sdxl"])
    assert names(tmp_path) == ["dog.png", "out.safetensors"]


def test_what_else_is_in_the_folder_of_checkpoints_stays(tmp_path, bases):
    """A person's notes, and the state of another run that was begun meanwhile."""
    config = settings(tmp_path, checkpoint_dir=tmp_path / "states")
    (tmp_path / "states").mkdir()
    (tmp_path / "states" / "notes.txt").write_text("mine")
    other = settings(
        tmp_path, checkpoint_dir=tmp_path / "states", seed=1, save_every=1, output=tmp_path / "other.safetensors"
    )

    def meanwhile(progress):
        if progress.step == 6:
            begun(other, open_base(pico.folder(), "cpu"), step=2)

    train(config, base=bases["sdxl"], on_step=meanwhile)
    assert names(tmp_path / "states") == ["notes.txt", "state.safetensors"]
    assert goes_on(other, bases["sdxl"])[0] == 3
    assert names(tmp_path / "states") == ["notes.txt"]


def full_after(monkeypatch, step, until=math.inf):
    """An on_step after which the disk is full, and after another no more."""
    real, now = checkpoint.write_safetensors, [0]

    def write_if_there_is_room(path, *rest):
        if step <= now[0] < until:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, *rest)

    monkeypatch.setattr(checkpoint, "write_safetensors", write_if_there_is_room)
    return lambda progress: now.__setitem__(0, progress.step)


@pytest.mark.parametrize("until", [5, math.inf])
def test_a_checkpoint_that_cannot_be_written_ends_no_run(tmp_path, bases, monkeypatch, until):
    """One warning for all of them; the adapter is that of a run which could write, and nothing is left."""
    config = settings(tmp_path)
    train(config, base=bases["sdxl"])
    whole = (tmp_path / "out.safetensors").read_bytes()
    watched = full_after(monkeypatch, 2, until)
    with pytest.warns(UserWarning, match="state.safetensors: no checkpoint of step 3 .No space left on device") as told:
        train(dataclasses.replace(config, save_every=1), base=bases["sdxl"], on_step=watched)
    assert len(told) == 1 and (tmp_path / "out.safetensors").read_bytes() == whole
    assert names(tmp_path) == ["dog.png", "out.safetensors"]


@pytest.mark.parametrize(("step", "way_on"), [(2, "goes on from step 2"), (0, "begins anew")])
def test_a_run_that_ends_without_a_checkpoint_says_from_where_it_will_go_on(tmp_path, bases, monkeypatch, step, way_on):
    """The last whole one is still there, and the same command begins with it."""
    config, watched = settings(tmp_path, save_every=1), full_after(monkeypatch, step)

    def watch(progress):
        watched(progress)
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = f"stopped after step 4 of 6; no checkpoint could be written: the same command {way_on}"
    with pytest.warns(UserWarning, match="no checkpoint"), pytest.raises(KeyboardInterrupt, match=stopped):
        train(config, base=bases["sdxl"], on_step=watch)
    monkeypatch.undo()
    assert goes_on(config, bases["sdxl"])[0] == step + 1


@pytest.mark.parametrize("how", ["damaged", "immovable"])
def test_a_state_that_cannot_be_removed_does_not_spoil_a_run_that_is_done(
    tmp_path, bases, monkeypatch, permissions_count, how
):
    """Damaged by others while the run learnt, also where the command is given again; or in a folder that was closed."""
    config = settings(tmp_path, save_every=1, overwrite=False)
    state = config.checkpoints / checkpoint.CHECKPOINT_FILE

    def meanwhile(progress):
        if progress.step == 6:
            state.write_bytes(b"damaged") if how == "damaged" else config.checkpoints.chmod(0o555)

    for watched in (meanwhile, pytest.fail)[: 1 + (how == "damaged")]:
        with pytest.warns(UserWarning, match="the run is done, but what is in .*out.checkpoint stays"):
            train(config, base=bases["sdxl"], on_step=watched)
        assert load(tmp_path / "out.safetensors").layers and state.is_file()
    config.checkpoints.chmod(0o755)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "no step": lambda path: rewritten(path, step=None),
    "another kind": lambda path: rewritten(path, run="null"),
    "no json": lambda path: rewritten(path, optimizer="{"),
    "of an earlier version": lambda path: rewritten(path, circumstances=None),
    "a factor is missing": lambda path: rewritten(path, drop="factor"),
    "a frozen factor is missing": lambda path: rewritten(path, drop="frozen"),
    "the random numbers are missing": lambda path: rewritten(path, drop="generator"),
    "a factor of another shape": lambda path: rewritten(path, cut="factor"),
}


def rewritten(path, drop="", cut="", **entries):
    """The state with entries replaced or left out (None), one tensor dropped, or reduced to a row."""
    tensors, metadata = read_safetensors(path)
    metadata = {key: x for key, x in {**metadata, **entries}.items() if x is not None}
    chosen = next((key for key in tensors if (drop or cut) and key.startswith(drop or cut)), None)
    tensors = {key: x.clone()[:1] if cut and key == chosen else x.clone() for key, x in tensors.items()}
    if drop:
        del tensors[chosen]
    write_safetensors(path, tensors, metadata)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_with_its_name_and_the_way_out(tmp_path, bases, damage):
    config = begun(settings(tmp_path, save_every=1, steps=3), bases["sdxl"], step=2)
    state = config.checkpoints / checkpoint.CHECKPOINT_FILE
    DAMAGES[damage](state)
    with pytest.raises(ValueError, match=f"{state}.*delete .*out.checkpoint or choose another checkpoint_dir"):
        train(config, base=bases["sdxl"])
