"""One run: what it writes, what it leaves alone, and that nothing can stop it from ending in the same bytes."""

import dataclasses
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

import pico
from qrlora.config import TrainConfig
from qrlora.families import FAMILIES, SizeConditioning, open_base
from qrlora.files import load
from qrlora.initialisation_methods import METHODS
from qrlora.injection import detach, initialise
from qrlora.linalg import leading_subspace
from qrlora.training import train
from qrlora.training.gradient_checkpointing import saved_activation_bytes

SIZES = SizeConditioning.uncropped(pico.SIZE, pico.SIZE)
LEARNS = {"qr": {"B"}, "qr-output": {"A"}, "qr-triangular": {"A"}, "qr-direct": {"A", "B"}, "lora": {"A", "B"}}
LEARNS |= {"qr-contrast": {"B"}, "qr-minor": {"B"}, "ortha": {"B"}, "pissa": {"A", "B"}, "olora": {"A", "B"}}


NEW = [("qr", family) for family in pico.BASES if family != "sdxl"]
"""The method of the paper on every other family; all methods on SDXL."""


@pytest.fixture(scope="module")
def base():
    return open_base(pico.folder(), "cpu")


@functools.cache
def opened(family, dtype="float32"):
    return open_base(pico.folder(family), "cpu", dtype)


def picture(folder):
    path = folder / "dog.png"
    if not path.exists():
        noise = torch.randint(0, 256, (20, 24, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(path)
    return path


def settings(folder, **changes):
    own = {"base": str(pico.folder()), "image": picture(folder), "output": folder / "out.safetensors", "device": "cpu"}
    own["overwrite"] = True
    return TrainConfig(**{**own, **changes})


@pytest.mark.parametrize(("method", "family"), [*((method, "sdxl") for method in METHODS), *NEW])
def test_every_method_learns_and_leaves_the_base_as_it_was(tmp_path, method, family):
    """The loss on one fixed draw falls; afterwards the base's every bit is where it was."""
    from qrlora.image_loading import load_image
    from qrlora.injection import applied
    from qrlora.training import denoising_loss
    from qrlora.training_example import encode_training_examples

    base = opened(family)
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    adapter = train(settings(tmp_path, method=method, steps=20, batch_size=4, learning_rate=0.03), base=base)
    after = base.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)

    example = encode_training_examples(base, [load_image(picture(tmp_path), base.defaults.resolution)], ["a <c>"])
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(16, *example.latents.shape[1:], generator=generator)
    moment = torch.arange(16) * 60
    fixed = (example.latents.expand(16, -1, -1, -1), noise, moment, example.condition.rows([0] * 16))
    with torch.no_grad():
        plain = denoising_loss(base.family.predict, base.model, base.noising, *fixed)
        with applied(base.model, [(adapter, 1.0)]):
            learnt = denoising_loss(base.family.predict, base.model, base.noising, *fixed)
    assert learnt < 0.99 * plain


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("preset", "method"),
    dict.fromkeys(
        [
            *pico.in_turn([(f, t) for f in FAMILIES for t in FAMILIES[f].targets], METHODS),
            *((("sdxl", FAMILIES["sdxl"].defaults.targets), method) for method in METHODS),
        ]
    ),
    ids=str,
)
def test_step_0_is_the_base(preset, method, dtype):
    """The model's answer with a fresh start on it, bit for bit; to rounding where B A - B_0 A_0 is subtracted."""
    family, targets = preset
    base, generator = opened(family, dtype), torch.Generator().manual_seed(3)
    noisy, condition = pico.latents(base, 2, generator), base.encode_prompt(["a <c>"] * 2, SIZES)
    row = METHODS[method]
    starts = {
        name: row.start(weight, leading_subspace(weight, 4, row.side) if row.side else None, 4, generator)
        for name, weight in base.weights(targets)
    }
    with torch.no_grad():
        plain = base.family.predict(base.model, noisy, torch.tensor([5, 900]), condition)
        initialise(base.model, starts, "fresh")
        fresh = base.family.predict(base.model, noisy, torch.tensor([5, 900]), condition)
        detach(base.model, "fresh")
    assert fresh.shape == noisy.shape and fresh.dtype == getattr(torch, dtype)
    if method in ("qr-direct", "pissa", "olora"):
        torch.testing.assert_close(fresh, plain, **({} if dtype == "bfloat16" else {"rtol": 1e-4, "atol": 1e-5}))
    else:
        assert torch.equal(fresh, plain)


@pytest.mark.parametrize("method", METHODS)
def test_only_what_the_method_lets_learn_changes(tmp_path, base, method):
    """A run of no length against one of four updates: the frozen factor is equal to the last bit."""
    short = train(settings(tmp_path, method=method, steps=1, learning_rate=1e-30), base=base)
    long = train(settings(tmp_path, method=method, steps=4), base=base)
    for layer, pair in long.layers.items():
        changed = {f for f in "AB" if not torch.equal(getattr(pair, f), getattr(short.layers[layer], f))}
        assert changed == LEARNS[method]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_is_explained_by_its_file(tmp_path, family):
    train(settings(tmp_path, trigger="<c>", prompt="a <c> face"), base=opened(family))
    header = load(tmp_path / "out.safetensors").header
    row = FAMILIES[family]
    assert (header.family, header.component, header.targets) == (family, row.component, row.defaults.targets)
    assert (header.method, header.rank, header.config["times"]) == ("qr", 4, row.defaults.timestep_sampling)
    assert (header.role, header.trigger, header.prompt) == ("content", "<c>", "a <c> face")
    layers = opened(family).target_layers(header.targets)
    assert header.config["basis_energy_lost"] == 0  # layers of a pico model are small: all their eigenvectors are found
    assert len(header.basis) == 64 and len(header.fingerprint) == min(16, len(layers))
    assert header.config["steps"] == 6 and header.config["learning_rate"] == 1e-2
    assert header.config["image"] == "dog.png"
    assert str(tmp_path) not in json.dumps(header.config)


def test_the_rate_falls_over_the_last_part_of_the_updates_on_torchs_own_line(tmp_path, base):
    """Of six updates with decay 0.5 the first four have the whole rate, so that five losses are a constant run's."""
    from qrlora.training.training_loop import linear_decay

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    line = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=20)
    for step in range(1, 21):
        assert linear_decay(step, 20, 1.0) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        line.step()
    assert [linear_decay(step, 6, 0.5) for step in range(1, 7)] == pytest.approx([1, 1, 1, 1, 2 / 3, 1 / 3])
    losses = {0.0: [], 0.5: [], 1.0: []}
    for lr_decay, seen in losses.items():
        train(settings(tmp_path, lr_decay=lr_decay), base=base, on_step=lambda p, seen=seen: seen.append(p.loss))
    assert losses[0.0][:5] == losses[0.5][:5] and losses[0.0][5] != losses[0.5][5]
    assert losses[0.0][:2] == losses[1.0][:2] and losses[0.0][2] != losses[1.0][2]


def test_equal_settings_give_equal_bytes_and_another_seed_gives_others(tmp_path, base):
    contents = []
    for seed in (0, 0, 1):
        train(settings(tmp_path, seed=seed), base=base)
        contents.append((tmp_path / "out.safetensors").read_bytes())
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_watching_a_run_does_not_change_it(tmp_path, family):
    """Previews, checkpoints, tensorboard and recomputed activations leave the numbers alone."""
    pytest.importorskip("tensorboard")
    base = opened(family)
    train(settings(tmp_path), base=base)
    plain = load(tmp_path / "out.safetensors")
    seen = []
    watched = settings(tmp_path, preview_every=2, preview_prompt="a <c> car", save_every=1, tensorboard=True)
    train(watched, base=base, on_preview=lambda step, image: seen.append((step, image.size, image.mode)))
    assert seen == [(step, (pico.side_of(family),) * 2, "RGB") for step in (2, 4, 6)]
    other = load(tmp_path / "out.safetensors")
    assert other.header == plain.header
    assert all(torch.equal(pair.B, plain.layers[name].B) for name, pair in other.layers.items())
    assert list((tmp_path / "out.tensorboard").iterdir())
    assert not watched.checkpoints.exists()
    recomputed = train(settings(tmp_path, gradient_checkpointing=True), base=base)
    for name, pair in recomputed.layers.items():
        torch.testing.assert_close(pair.B, plain.layers[name].B, rtol=1e-4, atol=1e-6)


def short_of_memory(model, room):
    """Make a model's forward pass fail as on a GPU with room for so many until activations are recomputed."""

    def check(*_):
        calls.append(model.is_gradient_checkpointing)
        if not calls[-1] and len(calls) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    calls = []
    return calls, model.register_forward_pre_hook(check)


def test_when_memory_runs_out_activations_are_recomputed_and_the_numbers_stay(tmp_path, base):
    """The failed update is done again with the same noise; nothing stays on the model."""
    plain = train(settings(tmp_path), base=base)
    calls, hook = short_of_memory(base.model, 2)
    with hook, pytest.warns(UserWarning, match="memory ran out: activations are computed again"):
        saved = train(settings(tmp_path), base=base)
    assert calls[:4] == [False, False, False, True] and all(calls[3:]) and not base.model.is_gradient_checkpointing
    for name, pair in saved.layers.items():
        torch.testing.assert_close(pair.B, plain.layers[name].B, rtol=1e-4, atol=1e-6)
    assert saved.header == plain.header


def test_who_forbids_recomputing_is_told_that_memory_ran_out(tmp_path, base):
    _, hook = short_of_memory(base.model, 0)
    with hook, pytest.raises(torch.cuda.OutOfMemoryError):
        train(settings(tmp_path, gradient_checkpointing=False), base=base)


def test_an_adapter_tells_the_number_type_that_was_chosen_for_it(tmp_path):
    """auto: float32 on a CPU; of a base that is open already, its own."""
    train(settings(tmp_path))
    assert load(tmp_path / "out.safetensors").header.config["dtype"] == "float32"
    adapter = train(settings(tmp_path), base=opened("sdxl", "bfloat16"))
    assert adapter.header.config["dtype"] == "bfloat16"


def test_text_encoders_and_vae_are_gone_before_the_first_update(tmp_path, monkeypatch):
    """An opened base is train's own: what is not needed any more is forgotten."""
    from qrlora.training import train_adapter as room

    opened = []
    monkeypatch.setattr(room, "open_base", lambda *how: opened.append(open_base(*how)) or opened[-1])
    train(settings(tmp_path), on_step=lambda _: opened[0].pipe.vae is None or pytest.fail("the VAE is still there"))
    assert opened[0].encoders_and_vae == {}


def test_progress_tells_step_loss_and_time_left(tmp_path, base):
    seen = []
    stages = []
    train(settings(tmp_path), base=base, on_step=seen.append, on_stage=lambda what, share: stages.append(what))
    assert [(p.step, p.steps) for p in seen] == [(k, 6) for k in range(1, 7)]
    assert all(0 < p.loss < 100 and p.seconds_left >= 0 for p in seen) and seen[-1].seconds_left == 0
    assert "reading the image" in stages


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("qr", "finding the leading directions"),
        ("qr-contrast", "comparing with ordinary prompts"),
        ("olora", None),
        ("peft:dora", None),
    ],
)
def test_every_stage_before_the_first_update_says_that_it_begins(tmp_path, method, own):
    stages = []
    train(settings(tmp_path, method=method, steps=1), on_stage=lambda *stage: stages.append(stage))
    begun = list({what: share for what, share in reversed(stages)}.items())[::-1]
    expected = [
        "opening the base model",
        "reading the image",
        "comparing with earlier runs",
        "encoding the image and its caption",
        "computing the initial factors",
        *filter(None, [own]),
        "beginning the first update",
    ]
    assert begun == [(what, 0.0) for what in expected]


@pytest.mark.parametrize(
    ("of", "optimizer"),
    pico.in_turn(
        [*((method, "sdxl") for method in ("qr", "qr-triangular", "qr-direct", "lora")), *NEW],
        ["adam", "adamw", "prodigy"],
    ),
)
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bytes(tmp_path, of, optimizer):
    method, family = of
    if optimizer == "prodigy":
        pytest.importorskip("prodigyopt")
    base = opened(family)
    config = settings(tmp_path, method=method, optimizer=optimizer, save_every=2)
    train(config, base=base)
    whole = (tmp_path / "out.safetensors").read_bytes()
    (tmp_path / "out.safetensors").unlink()

    class Stopped(Exception):
        pass

    def stop(progress):
        if progress.step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train(config, base=base, on_step=stop)
    assert config.checkpoints.is_dir() and not (tmp_path / "out.safetensors").exists()
    seen = []
    train(config, base=base, on_step=lambda p: seen.append(p.step))
    assert seen == [5, 6]
    assert (tmp_path / "out.safetensors").read_bytes() == whole
    assert not config.checkpoints.exists()


RUN = """
import sys
from qrlora.config import TrainConfig
from qrlora.training import train
from qrlora.training.gradient_checkpointing import saved_activation_bytes
base, image, output = sys.argv[1:]
config = TrainConfig(base=base, image=image, output=output, device="cpu", steps=60, batch_size=1, save_every=1)
train(config, on_step=lambda p: print(p.step, flush=True))
"""


def launch(folder, before="", **environment):
    command = [
        sys.executable,
        "-c",
        f"{before}\n{RUN}",
        str(pico.folder()),
        str(picture(folder)),
        str(folder / "out.safetensors"),
    ]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "MKL_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **threads, **environment}
    )


def steps_until(process, step):
    for line in process.stdout:
        if int(line) >= step:
            return
    pytest.fail(process.stderr.read())


@pytest.mark.processes
def test_a_run_killed_at_a_random_moment_ends_in_the_same_bytes(tmp_path, base):
    """SIGKILL leaves no time for anything; it may fall into an update or into the writing of a checkpoint."""
    config = settings(tmp_path, steps=60, batch_size=1, save_every=1)
    train(config, base=base)
    whole = (tmp_path / "out.safetensors").read_bytes()
    (tmp_path / "out.safetensors").unlink()
    process = launch(tmp_path)
    steps_until(process, random.randint(2, 30))
    time.sleep(random.random() / 20)
    process.kill()
    process.wait()
    assert not (tmp_path / "out.safetensors").exists()
    seen = []
    train(config, base=base, on_step=lambda p: seen.append(p.step))
    assert seen[0] > 1
    assert (tmp_path / "out.safetensors").read_bytes() == whole


@pytest.mark.processes
def test_ctrl_c_ends_the_update_and_saves_it(tmp_path, base):
    process = launch(tmp_path)
    steps_until(process, 3)
    process.send_signal(signal.SIGINT)
    told = [int(line) for line in process.stdout]
    assert "KeyboardInterrupt: stopped after step" in process.stderr.read() and process.wait() != 0
    seen = []
    config = settings(tmp_path, steps=60, batch_size=1, save_every=1)
    train(config, base=base, on_step=lambda p: seen.append(p.step))
    assert seen[0] == (told[-1] if told else 3) + 1


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(tmp_path, base):
    config = settings(tmp_path, save_every=2)
    with pytest.raises(RuntimeError):
        train(config, base=base, on_step=fail_at(3))
    with pytest.raises(
        ValueError, match=r"another run \(rank was 4, is 3\): delete .*out.checkpoint or choose another"
    ):
        train(dataclasses.replace(config, rank=3), base=base)
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (16, 16), "red").save(other / "dog.png")
    with pytest.raises(ValueError, match=r"another run \(picture was"):
        train(dataclasses.replace(config, image=other / "dog.png"), base=base)
    with pytest.raises(ValueError, match="holds step 2 of a longer run than steps=1"):
        train(dataclasses.replace(config, steps=1), base=base)
    (config.checkpoints / "state.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="state.safetensors"):
        train(config, base=base)


def test_prodigy_finds_a_step_near_the_one_that_a_person_would_tune(tmp_path, base):
    """From its 1e-6 it grows by orders of magnitude, and the loss of the picture's own noise falls; its rate is 1."""
    pytest.importorskip("prodigyopt")
    losses = []
    config = settings(tmp_path, optimizer="prodigy", learning_rate=None, steps=150, batch_size=8)
    adapter = train(config, base=base, on_step=lambda progress: losses.append(progress.loss))
    assert adapter.header.config["learning_rate"] == 1.0
    assert sum(losses[-40:]) < 0.97 * sum(losses[:40])


def test_an_optimizer_that_is_not_there_is_refused_with_the_way_out(tmp_path, base, monkeypatch):
    from qrlora.training.optimizers import LIBRARIES

    with pytest.raises(ValueError, match="adam8bit needs a GPU with CUDA, the device is cpu: use optimizer=adam"):
        train(settings(tmp_path, optimizer="adam8bit"), base=base)
    monkeypatch.setitem(LIBRARIES, "prodigy", "no_such_library")
    with pytest.raises(
        ValueError, match=r'optimizer=prodigy needs no_such_library: pip install "qrlora\[optimizers\]"'
    ):
        train(settings(tmp_path, optimizer="prodigy"), base=base)


def fail_at(step):
    def act(progress):
        if progress.step == step:
            raise RuntimeError("as if the power had failed")

    return act


def test_a_loss_that_is_no_number_stops_the_run_with_step_and_remedy(tmp_path, base):
    with pytest.raises(
        ValueError, match=r"the loss is (nan|inf) at step \d of 6: lower learning_rate, which is 1e\+30"
    ):
        train(settings(tmp_path, learning_rate=1e30), base=base)
    assert not (tmp_path / "out.safetensors").exists()
    assert not any("lora" in name for name, _ in base.model.named_modules())


@pytest.mark.parametrize("family", [x for x in FAMILIES if x != "qwen_image_21"])
def test_an_update_never_waits_for_the_device(tmp_path, family, monkeypatch):
    """On the meta device, where there are no numbers, whatever asks for one fails: nothing does, but Qwen-Image-2.1's
    class, which asks its masks at each call."""
    from qrlora.image_loading import load_image
    from qrlora.training.distributed import Processes
    from qrlora.training.training_loop import make_loss
    from qrlora.training_example import encode_training_examples

    base = open_base(pico.folder(family), "cpu")
    config = settings(tmp_path).filled(base.defaults)
    example = encode_training_examples(base, [load_image(picture(tmp_path), base.defaults.resolution)], ["a <c>"])
    row = METHODS["lora"]
    starts = {name: row.start(weight, None, 2) for name, weight in base.weights(config.targets)}
    base.model.to("meta")
    monkeypatch.setattr(type(base), "device", torch.device("meta"))
    parameters = initialise(base.model, starts, "run")
    draw = make_loss(config, base, example, torch.Generator().manual_seed(0), Processes())
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for _ in range(2):
        loss = draw()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()


@pytest.mark.parametrize("save_every", [0, 1])
def test_a_loss_told_late_is_never_saved_unseen(tmp_path, base, monkeypatch, save_every):
    """As on a GPU, where each loss is read while the next update runs: NaN reaches neither checkpoint nor file."""
    from qrlora.training import training_loop

    monkeypatch.setattr(training_loop, "ASYNCHRONOUS_DEVICES", frozenset({"cpu"}))
    seen = []
    config = settings(tmp_path, learning_rate=1e30, save_every=save_every)
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d of 6"):
        train(config, base=base, on_step=lambda progress: seen.append(progress.step))
    assert not (tmp_path / "out.safetensors").exists()
    assert config.checkpoints.exists() == bool(save_every) and len(seen) < 6
    told = []
    train(settings(tmp_path, checkpoint_dir=tmp_path / "other"), base=base, on_step=lambda p: told.append(p.step))
    assert told == [1, 2, 3, 4, 5, 6]


def test_a_rank_above_a_layers_size_is_refused_with_the_layer(tmp_path, base):
    with pytest.raises(ValueError, match=r"rank 13 is above the smaller side of down_blocks.*\(12 x 12\): use rank 12"):
        train(settings(tmp_path, rank=13), base=base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "a dog"}, "lacks its trigger word '<c>'"),
        ({"role": "style", "prompt": "a dog in <c> style"}, "lacks its trigger word '<s>'"),
        ({"method": "qr-outptu"}, "no method 'qr-outptu'; did you mean 'qr-output'"),
        ({"output": "x.bin"}, "ends in .safetensors"),
        ({"preview_every": 3}, "preview_every=3 needs on_preview"),
        ({"targets": "to_qq"}, "ends in 'to_qq'"),
        ({"timestep_sampling": "often"}, "no timestep_sampling 'often'; known: uniform"),
        ({"resolution": 20}, "resolution must be a multiple of 8 pixels for .*, got 20: try 16"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(tmp_path, base, changes, message):
    with pytest.raises(ValueError, match=message):
        train(settings(tmp_path, **changes), base=base)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_flow_base_refuses_min_snr_before_anything_long(tmp_path, family):
    stages = []
    with pytest.raises(ValueError, match="min_snr_gamma=5 is for diffusion, this base is a rectified flow"):
        train(settings(tmp_path, min_snr_gamma=5), base=opened(family), on_stage=lambda what, _: stages.append(what))
    assert stages == ["opening the base model"]


def test_a_base_with_broken_weights_is_refused_with_the_layer(tmp_path):
    broken = open_base(pico.folder(), "cpu")
    next(iter(broken.target_layers("self").values())).weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="down_blocks.*NaN or infinity"):
        train(settings(tmp_path), base=broken)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_half_precision_base_learns_float32_factors(tmp_path, family):
    """Every layer learns, but for the one that no answer depends on: SD3's last block asks nothing about its words."""
    adapter = train(settings(tmp_path), base=opened(family, "bfloat16"))
    assert all(pair.B.dtype == torch.float32 for pair in adapter.layers.values())
    still = {name for name, pair in adapter.layers.items() if not pair.B.any()}
    assert still == ({"transformer_blocks.1.attn.add_q_proj"} if family == "sd3" else set())


@pytest.mark.parametrize("kind", ["dora", "oft", "vera", "loha", "unilora"])
def test_any_of_pefts_methods_learns_by_name_and_is_stored_as_an_ordinary_lora(tmp_path, base, kind, monkeypatch):
    """What the file does to the base is what PEFT's own layers did, to the error that the header states."""
    from qrlora.injection import applied, peft_methods

    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    asked = (noisy, torch.tensor([500]), base.encode_prompt(["a <c>"], SIZES))
    answers = []
    extract = peft_methods.PeftAdapter.extract

    def catch_stop_signals(self, header):
        with torch.no_grad():
            answers.append(base.family.predict(base.model, *asked))
        return extract(self, header)

    monkeypatch.setattr(peft_methods.PeftAdapter, "extract", catch_stop_signals)
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    train(settings(tmp_path, method=f"peft:{kind}", steps=8, learning_rate=0.02, rank=6), base=base)
    after = base.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert not hasattr(base.model, "peft_config") and not any(p.requires_grad for p in base.model.parameters())
    adapter = load(tmp_path / "out.safetensors")
    error = adapter.header.config["truncation_error"]
    assert adapter.header.method == f"peft:{kind}" and adapter.rank <= 12 and 0 <= error < 1
    if kind in ("vera", "unilora"):
        assert error < 1e-3
    with torch.no_grad():
        plain = base.family.predict(base.model, *asked)
        with applied(base.model, [(adapter, 1.0)]):
            ours = base.family.predict(base.model, *asked)
    change = torch.dist(answers[0], plain)
    assert change > 1e-4 * plain.norm() and torch.dist(ours, answers[0]) < (2 * error + 1e-2) * change


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("prompt_tuning", "cannot learn here: it learns tokens"),
        ("adalora", "needs a training loop of its own"),
        ("dorra", "no method 'dorra' for layers; did you mean peft:dora"),
    ],
)
def test_a_method_of_pefts_that_cannot_work_is_refused_by_name(tmp_path, kind, message):
    with pytest.raises(ValueError, match=message):
        train(settings(tmp_path, method=f"peft:{kind}"))


def test_a_layer_that_does_not_answer_linearly_is_not_taken_for_a_lora():
    from qrlora.injection.peft_methods import measure_update

    class Bent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.base = torch.nn.Linear(4, 3)

        def get_base_layer(self):
            return self.base

        def forward(self, x):
            return self.base(x).relu()

    with pytest.raises(ValueError, match="peft:bent, to_q: the layer does not answer linearly"):
        measure_update(Bent(), "peft:bent, to_q")


def test_on_a_gpu_that_spills_over_recomputing_is_decided_before_the_first_update(tmp_path, base, monkeypatch):
    """Windows' driver never says that memory ran out: what an update keeps is counted and compared with what is free.
    With the CPU in the GPU's place; the numbers stay, and so does the noise."""
    from qrlora.training import gradient_checkpointing as room

    plain, kept = train(settings(tmp_path), base=base), []
    monkeypatch.setattr(room, "pages_to_host_memory", lambda device: True)
    monkeypatch.setattr(
        room, "saved_activation_bytes", lambda *how: kept.append(saved_activation_bytes(*how)) or kept[-1]
    )
    monkeypatch.setattr(room, "peak_bytes", lambda work, device: work() or 1000)
    monkeypatch.setattr(room, "free_memory", lambda device: 10**9)
    seen = []
    base.model.conv_in.register_forward_hook(lambda *_: seen.append(base.model.is_gradient_checkpointing))
    enough = train(settings(tmp_path), base=base)
    assert seen == [False, True] + 6 * [False] and 10**5 < kept[0] < 10**7  # counted, tried, done
    monkeypatch.setattr(room, "free_memory", lambda device: kept[0])
    seen.clear()
    with pytest.warns(UserWarning, match="an update needs .* GB are free: activations are computed again"):
        scarce = train(settings(tmp_path), base=base)
    assert seen == [False, True] + 6 * [True]
    for name, pair in plain.layers.items():
        assert torch.equal(enough.layers[name].B, pair.B)
        torch.testing.assert_close(scarce.layers[name].B, pair.B, rtol=1e-4, atol=1e-6)


def test_what_a_forward_pass_keeps_is_counted_once_for_each_storage():
    """Against a sum by hand: a square keeps its input, a product of two both; the weights were there before."""
    W, x = torch.randn(30, 20), torch.randn(10, 20, requires_grad=True)

    def work():
        h = x @ W.T  # keeps W alone, since W learns nothing
        return (h * h.exp()).square().sum()  # keeps h, its exponential once, their product

    assert saved_activation_bytes(work, [W]) == 3 * 10 * 30 * 4
    assert saved_activation_bytes(work, []) == 3 * 10 * 30 * 4 + W.nbytes
