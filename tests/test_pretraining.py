"""Pre-training as a command: what it refuses, what it writes where, and that a killed run ends as one that was not."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from few_latents import few_latents
from qrlora.adapter import Adapter, Header, Pair
from qrlora.basis import fingerprint
from qrlora.built_in_bases import folder_of
from qrlora.families import open_base
from qrlora.files import save
from qrlora.world import (
    base_export,
    base_scores,
    classifier_training,
    drawings,
    model_card,
    pretrain,
    pretraining_log,
    pretraining_set,
    render_sheets,
    vae_training,
)
from qrlora.world.base_architectures import load_trained_vae
from qrlora.world.drawings import HANDS, KNOWN_HANDS, PLAIN_HAND, known_contents
from qrlora.world.ground_truth import true_images
from qrlora.world.image_tensors import pil_from_tensor
from qrlora.world.pretraining_settings import PretrainingSettings
from qrlora.world.pretraining_state import PretrainingRun

FOREVER = float("inf")


def ended(capsys, main, *words):
    """(exit code, standard output, standard error) of a command of the world, in this process."""
    capsys.readouterr()
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        code = end.code
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture
def excerpt_alone(monkeypatch, tmp_path):
    """No full sheets, whatever the user's cache holds."""
    monkeypatch.setattr(drawings, "full_sheet_folder", lambda: tmp_path / "no-sheets")
    for cached in (drawings._tiles_by_hand, drawings.contents_drawn_by):
        cached.cache_clear()
    yield
    for cached in (drawings._tiles_by_hand, drawings.contents_drawn_by):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"dtype": "relu"}, "dtype must be one of auto, float32, bfloat16, got 'relu'"),
        ({"dtype": "int8"}, "dtype must be one of auto, float32, bfloat16, got 'int8'"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"warmup": 0}, "warmup must be 1 or more, got 0"),
        ({"samples": 10}, "samples 10 are less than one batch of 64: no step is taken"),
        ({"samples": 0}, "samples must be 1 or more, got 0"),
        ({"random": -1}, "random must be 0 or more, got -1"),
        ({"seed": 10**13}, "seed must be 1000000000000 or less"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number"),
        ({"decay": -1.0}, "decay must be a fraction of the run, 0..1, got -1"),
        ({"average": 2.0}, "average must be 0 or more and less than 1"),
        ({"average": 1.0}, "average must be 0 or more and less than 1"),
    ],
)
def test_settings_of_pre_training_that_cannot_be_are_refused_on_creation(settings, what):
    with pytest.raises(ValueError) as caught:
        PretrainingSettings(**settings)
    assert what in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_settings_at_their_bounds_are_taken():
    settings = PretrainingSettings(samples=64, warmup=1, decay=0, average=0, styled_hands=0, random=0, seed=10**12)
    assert settings.steps == 1 and 0 < settings.learning_rate_at(0) <= settings.learning_rate
    torch.Generator().manual_seed(settings.seed * 1_000_003 + 10**9)


COMMANDS = [
    (pretrain, "tiny-flux --start /nonexistent --excerpt", "start=/nonexistent: tiny-flux is a FluxPipeline"),
    (pretrain, "tiny-flux --dtype foo --excerpt", "dtype must be one of auto, float32, bfloat16, got 'foo'"),
    (pretrain, "tiny-flux --samples 10 --excerpt", "samples 10 are less than one batch of 64"),
    (pretrain, "tiny-flux --latents other.safetensors --excerpt", "other.safetensors holds no training set"),
    (pretrain, "tiny-flux --latents text.txt --excerpt", "text.txt: not a whole safetensors file"),
    (pretrain, "tiny-flux", "no full sheets of fluent-3d, fluent, fluent-flat, twemoji, emojitwo are here"),
    (pretrain, "tiny-flux --output full --excerpt", "full holds dear.txt, which is no part of a model"),
    (pretrain, "tiny-flux --run run --output run --excerpt", "run holds the run's checkpoints"),
    (pretrain, "tiny-flux --run all/run --output all --excerpt", "all holds the run's checkpoints"),
    (pretrain, "tiny-flux --output text.txt --excerpt", "text.txt: is no folder"),
    (base_scores, "nosuchbase", "base model 'nosuchbase': neither a built-in name"),
    (base_scores, "tiny-flux --curve text.txt", "text.txt is no whole checkpoint of pre-training"),
    (base_scores, "tiny-flux --curve nowhere.pt", "nowhere.pt: No such file or directory"),
    (base_scores, "tiny-flux --method lorra", "no method 'lorra'; did you mean 'lora'?"),
    (classifier_training, "--excerpt", "is there already: --overwrite replaces it"),
    (classifier_training, "--output new.safetensors", "no full sheets of fluent-3d"),
    (classifier_training, "--output new.safetensors --excerpt --start other.safetensors", "holds no classifiers"),
    (classifier_training, "--output new.safetensors --excerpt --vae full", "full is no folder of an AutoencoderTiny"),
    (vae_training, "tiny-sd3 --excerpt", "is there already: --overwrite replaces it, --output FOLDER writes elsewhere"),
    (vae_training, "tiny-sd3 --output vae", "no full sheets of fluent-3d"),
    (vae_training, "tiny-sd3 --output vae --excerpt", "taef2_encoder.pth: No such file or directory"),
    (vae_training, "tiny-sd3 --output vae --excerpt --taef2 full", "is no whole state dict of TAEF2's encoder"),
    (vae_training, "tiny-sd3 --output vae --excerpt --taef2 wrapped", "taef2_encoder.pth is not TAEF2's encoder"),
    (vae_training, "tiny-sd3 --output vae --excerpt --decoder full", "full is no folder of an AutoencoderTiny"),
    (render_sheets, "--output sheets --npm npm", "npm is not installed"),
]


@pytest.mark.processes
def test_two_processes_never_pretrain_in_one_folder(tmp_path):
    """The second is told so in one line, and may begin once the first has ended."""
    lines = ("import pathlib", "from qrlora.world.pretrain import alone_in", "alone_in(pathlib.Path()).__enter__()")
    second = [sys.executable, "-c", "\n".join(lines)]
    with pretrain.alone_in(tmp_path):
        refused = subprocess.run(second, capture_output=True, text=True, cwd=tmp_path)
        assert refused.returncode and "is in use by another pre-training: wait for it" in refused.stderr
    subprocess.run(second, check=True, cwd=tmp_path)


@pytest.mark.usefixtures("excerpt_alone")
@pytest.mark.parametrize(("module", "words", "what"), COMMANDS, ids=[f"{m.__name__} {w}" for m, w, _ in COMMANDS])
def test_a_command_of_the_world_ends_in_one_line_where_its_input_is_bad(
    module, words, what, capsys, monkeypatch, tmp_path
):
    """And has written nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    save_file({"a": torch.zeros(1)}, "other.safetensors", {"b": "c"})
    Path("full").mkdir()
    for path in ("text.txt", "full/dear.txt", "full/taef2_encoder.pth"):
        Path(path).write_text("no model of any kind")
    Path("wrapped").mkdir()
    torch.save({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, "wrapped/taef2_encoder.pth")
    before = set(tmp_path.rglob("*"))
    code, _, said = ended(capsys, module.main, *words.split())
    assert code == 2 and said.startswith("error: ") and what in said
    assert len(said.splitlines()) == 1
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("module", "words", "what"),
    [
        (pretrain, "tiny-flux --every 0", "argument --every: must be 1 or more, got 0"),
        (pretrain, "tiny-flux --within nan", "argument --within: must be a number above 0, got nan"),
        (base_scores, "tiny-flux --contents 61", "argument --contents: must be 0 to 60, got 61"),
        (classifier_training, "--seconds 0", "argument --seconds: must be a number above 0, got 0"),
        (classifier_training, "--batch 4", "argument --batch: must be 12 or more, got 4"),
        (vae_training, "tiny-sd3 --batch four", "argument --batch: invalid whole number value: 'four'"),
        (vae_training, "tiny-sd3 --batch 12", "argument --batch: must be a multiple of 8, got 12"),
    ],
)
def test_a_number_that_no_run_can_have_is_named_with_its_option(module, words, what, capsys):
    code, _, said = ended(capsys, module.main, *words.split())
    assert code == 2 and said.splitlines()[-1].endswith(what)


@pytest.fixture
def flux_checkpoint(tmp_path, two_steps):
    """A checkpoint of a tiny-flux of one step, and its settings."""
    settings = dataclasses.replace(two_steps, samples=6)
    pretrain.pretrain("tiny-flux", tmp_path, settings, "cpu", 100, FOREVER)
    return tmp_path / "last.pt", settings


def changed_checkpoint(path, **changes):
    """A checkpoint with other entries; None takes one away."""
    state = {**torch.load(path, weights_only=True), **changes}
    torch.save({name: value for name, value in state.items() if value is not None}, path)


def test_a_checkpoint_of_another_base_is_refused_in_one_line_with_and_without_its_name(flux_checkpoint):
    """tiny-sd3 and tiny-flux share a VAE, and so a training set."""
    path, settings = flux_checkpoint
    for what in ("is of tiny-flux, this run is of tiny-sd3", "is of another base than this run"):
        with pytest.raises(ValueError, match=what) as caught:
            pretrain.pretrain("tiny-sd3", path.parent, settings, "cpu", 100, FOREVER)
        assert len(str(caught.value).splitlines()) == 1
        changed_checkpoint(path, base=None)


@pytest.mark.parametrize(
    ("entry", "value"), [("settings", []), ("settings", {}), ("model", []), ("optimizers", {}), ("training_set", 7)]
)
def test_a_file_with_a_checkpoints_entries_and_other_things_in_them_is_refused_in_one_line(
    flux_checkpoint, capsys, entry, value
):
    path, _ = flux_checkpoint
    changed_checkpoint(path, **{entry: value})
    before = contents_of(path.parent)
    words = "tiny-flux", "--run", path.parent, "--samples", 6, "--batch-size", 6, "--warmup", 1
    code, _, said = ended(capsys, pretrain.main, *words)
    assert code == 2 and said.startswith(f"error: {path} ") and len(said.splitlines()) == 1
    assert contents_of(path.parent) == before


@pytest.mark.parametrize("decoder", [{"a": torch.zeros(1)}, {0: torch.zeros(1)}, {"1.weight": 5}])
def test_another_file_in_the_place_of_taef2s_decoder_is_not_trained_from(decoder, monkeypatch, tmp_path):
    """With nothing to copy from it the decoder would begin as noise."""
    monkeypatch.setattr(vae_training, "taef2_encoder", lambda folder: torch.nn.Identity())
    torch.save(decoder, tmp_path / "taef2_decoder.pth")
    with pytest.raises(ValueError, match=r"taef2_decoder\.pth is no"):
        vae_training.train_vae("tiny-sd3", tmp_path / "vae", tmp_path, 1e-9, 8, "cpu")
    assert not (tmp_path / "vae").exists()


def test_a_vae_that_begins_as_one_of_its_own_shape_begins_with_all_its_weights():
    one, other = vae_training.untrained_vae("tiny-sd3").decoder, vae_training.untrained_vae("tiny-sd3").decoder
    assert vae_training.copy_shared_convolutions(one, other.state_dict(), reverse=True) == len(other.state_dict())
    torch.testing.assert_close(one.state_dict(), other.state_dict())


def test_a_run_goes_on_from_a_checkpoint_of_before_that_names_no_base(flux_checkpoint):
    path, settings = flux_checkpoint
    changed_checkpoint(path, base=None, over=None, losses=None, before=None)
    longer = dataclasses.replace(settings, samples=12)
    assert pretrain.pretrain("tiny-flux", path.parent, longer, "cpu", 100, FOREVER).step == 2


def test_a_checkpoint_whose_optimizers_share_the_weights_out_otherwise_leaves_the_run_as_it_was(flux_checkpoint):
    path, settings = flux_checkpoint
    state = torch.load(path, weights_only=True)
    for of_one, step in zip(state["optimizers"], (-1, 1), strict=True):  # as convolutions went from AdamW to Muon
        count = len(of_one["param_groups"][0]["params"]) + step
        of_one["param_groups"][0]["params"] = list(range(count))
    changed_checkpoint(path, optimizers=state["optimizers"])
    run = PretrainingRun("tiny-flux", settings, "cpu")
    run.training_set = state["training_set"]
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    with pytest.raises(ValueError, match="shares the weights out among its optimizers in another way") as caught:
        run.load(path)
    assert len(str(caught.value).splitlines()) == 1 and run.step == 0
    assert all(torch.equal(weight, before[name]) for name, weight in run.model.state_dict().items())


def test_a_run_goes_on_in_its_checkpoints_dtype_if_no_other_is_asked_for(tmp_path, two_steps):
    """As one of a CPU does on a GPU, which would have chosen another."""
    of_gpu = dataclasses.replace(two_steps, samples=6, dtype="bfloat16")
    pretrain.pretrain("tiny-flux", tmp_path, of_gpu, "cpu", 100, FOREVER)
    run = pretrain.pretrain("tiny-flux", tmp_path, dataclasses.replace(of_gpu, dtype="auto"), "cpu", 100, FOREVER)
    assert run.settings.dtype == "bfloat16" and run.dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------------ what is written


def words_of(tmp_path, *more):
    """The command of a run of four steps on few latents."""
    return "tiny-flux", "--run", tmp_path / "run", "--samples", 24, "--batch-size", 6, "--warmup", 1, *more


def contents_of(folder):
    """{path inside: content} of the files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("two_steps")
def test_a_finished_base_is_written_beside_its_run_and_opens_with_the_built_in_ones_settings(capsys, tmp_path):
    """Given again the command changes nothing; the installed base is as it was."""
    installed = contents_of(folder_of("tiny-flux"))
    code, said, _ = ended(capsys, pretrain.main, *words_of(tmp_path))
    written = tmp_path / "run" / "tiny-flux"
    assert code == 0 and said.splitlines()[-1] == str(written)
    assert open_base(str(written)).defaults == open_base("tiny-flux").defaults
    first = contents_of(tmp_path)
    code, _, said = ended(capsys, pretrain.main, *words_of(tmp_path))
    assert code == 2 and "is there already: --overwrite replaces it, --output FOLDER writes elsewhere" in said
    assert contents_of(tmp_path) == first and contents_of(folder_of("tiny-flux")) == installed


@pytest.mark.usefixtures("two_steps")
def test_a_finished_command_given_again_names_the_base_that_it_started_from_once(capsys, tmp_path):
    """Though that is the very folder that it replaces: what was before is known since the run began."""
    base = tmp_path / "bases" / "tiny-flux"
    shutil.copytree(folder_of("tiny-flux"), base)
    (base / "notes").mkdir()
    again = words_of(tmp_path, "--start", base, "--output", base, "--overwrite")
    code, _, said = ended(capsys, pretrain.main, *again)
    assert code == 2 and "holds notes, which is no part of a model" in said
    (base / "notes").rmdir()
    before = json.loads((base / "training.json").read_text())
    for _ in range(2):
        assert ended(capsys, pretrain.main, *again)[0] == 0
        record = json.loads((base / "training.json").read_text())
        assert record["before"] == before and record["settings"]["start"] == "tiny-flux"
    assert not (base / "scores.json").exists(), "scores of the weights of before"
    assert (base / "qrlora.json").read_bytes() == (folder_of("tiny-flux") / "qrlora.json").read_bytes()
    assert [path.name for path in base.parent.iterdir()] == ["tiny-flux"]


@pytest.mark.usefixtures("two_steps")
def test_a_run_that_is_stopped_before_its_end_writes_no_base_and_says_so(capsys, tmp_path):
    """By its samples or by the clock: its rate has not fallen."""
    for more in ((), ("--within", 60)):
        code, said, _ = ended(capsys, pretrain.main, *words_of(tmp_path, "--minutes", 1e-9, *more))
        assert code == 0 and "stopped after step 0 of 4, nothing is written" in said
    assert not (tmp_path / "run" / "tiny-flux").exists()


def test_a_run_that_the_clock_ends_counts_the_minutes_of_all_calls(tmp_path, two_steps, monkeypatch):
    """Three quarters of its minute are over; so it ends in what is left, and has ended when it is given again."""
    settings = dataclasses.replace(two_steps, samples=10**9)
    run = PretrainingRun("tiny-flux", dataclasses.replace(settings, dtype="float32"), "cpu")
    run.training_set, run.over = "few latents", 0.75
    run.save(tmp_path / "last.pt")
    seconds = itertools.count(0, 2)  # two at every look at the clock, however fast the machine is
    monkeypatch.setattr(pretrain, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    run = pretrain.pretrain("tiny-flux", tmp_path, settings, "cpu", 10**6, FOREVER, within=1)
    assert run.over == 1 and 1 <= run.step <= 4 and run.is_over(1)
    assert pretrain.pretrain("tiny-flux", tmp_path, settings, "cpu", 10**6, FOREVER, within=1).step == run.step


def test_a_base_that_was_not_trained_or_whose_log_is_gone_replaces_none(tmp_path, two_steps):
    base = tmp_path / "tiny-flux"
    shutil.copytree(folder_of("tiny-flux"), base)
    before = contents_of(tmp_path)
    run = PretrainingRun("tiny-flux", two_steps, "cpu")
    with pytest.raises(ValueError, match="tiny-flux was not trained for a single step"):
        base_export.export_base(run, tmp_path / "log.jsonl", base, overwrite=True)
    run.step = 4
    with pytest.raises(FileNotFoundError):
        base_export.export_base(run, tmp_path / "log.jsonl", base, overwrite=True)
    assert contents_of(tmp_path) == before


def test_a_full_disk_leaves_the_base_that_was_to_be_replaced(tmp_path, two_steps, monkeypatch):
    """The new one is written beside it first."""
    base = tmp_path / "tiny-flux"
    shutil.copytree(folder_of("tiny-flux"), base)
    (tmp_path / "log.jsonl").write_text('{"step": 4, "samples": 24, "loss": 1.0, "samples_per_second": 2.0}\n')
    before = contents_of(tmp_path)
    run = PretrainingRun("tiny-flux", two_steps, "cpu")
    run.step = 4
    write = base_export.write_pipeline

    def write_half(run, folder):
        write(run, folder)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(base_export, "write_pipeline", write_half)
    with pytest.raises(OSError, match="No space left"):
        base_export.export_base(run, tmp_path / "log.jsonl", base, overwrite=True)
    assert contents_of(tmp_path) == before


def test_the_curve_of_a_card_has_the_first_row_of_the_log_and_the_last():
    rows = [{"samples": k, "loss": 1 / (k + 1)} for k in range(97)]
    for count in (1, 2, 12, 13, 14, 25, 97):
        curve = pretraining_log.loss_curve(rows[:count])
        assert curve[0] == (0, 1.0) and curve[-1] == (count - 1, 1 / count)
        assert len(curve) == len(set(curve)) == min(count, 13)


def test_steps_that_are_taken_again_are_in_the_log_once(tmp_path):
    """The rows beyond the checkpoint go, and the half row that a killed process left."""
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"step": 1, "loss": 1}\n{"step": 2, "loss": 9}\n{"step": 2, "loss": 2}\n{"step": 3, "loss": 3}\n{"st'
    )
    pretraining_log.drop_rows_beyond(log, 2)
    assert pretraining_log.read_log(log) == [{"step": 1, "loss": 1}, {"step": 2, "loss": 2}]
    log.write_text('{"st\n{"step": 1, "loss": 1}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 1: no row of a log of pre-training"):
        pretraining_log.read_log(log)


# ------------------------------------------------------------------------------------------------------------- drawings


def test_a_card_of_methods_that_were_scored_on_other_styles_leaves_the_cells_empty(tmp_path):
    """`base_scores --styles 1 --method lora --write` after one with all."""
    folder = shutil.copytree(folder_of("tiny-flux"), tmp_path / "tiny-flux")
    scores = json.loads((folder / "scores.json").read_text())
    fractions = dict.fromkeys(model_card.SCORE_LABELS, 0.5)
    scores["qr"] = {"pairs": 2, **fractions, "by_style": {"dusk": [1.0, 0.75], "glitch": [0.5, 0.25]}}
    scores["lora"] = {"pairs": 1, **fractions, "by_style": {"dusk": [0.25, 0.5]}}
    (folder / "scores.json").write_text(json.dumps(scores))
    card = model_card.write_card(folder).read_text()
    assert "| dusk | 100% / 75% | 25% / 50% |" in card and "| glitch | 50% / 25% |  |" in card


def test_images_that_are_what_a_hand_drew_have_the_scores_of_its_true_drawings(monkeypatch, tmp_path):
    """The captions of a hand score 1 in SSIM where each image is its truth, and as the truth in the classifiers; with
    the hands exchanged it is neither. The card shows them."""
    base, by_name = open_base("tiny-flux", "cpu", "float32"), {HANDS[hand].words: hand for hand in HANDS}

    def drawn(_base, prompts, hand_of=lambda hand: hand, **_):
        asked = [re.fullmatch(r"a (.+) in (.+) style", prompt) for prompt in prompts]
        return pil_from_tensor(torch.cat([true_images([x[1]], hand_of(by_name[x[2]])) for x in asked]))

    monkeypatch.setattr(base_scores, "generate", drawn)
    scores = base_scores.hand_scores(base, 10)
    assert scores["hand_ssim"] > 0.999 and scores["hand"] == scores["hand_truth"] and scores["hand_content"] > 0.8
    monkeypatch.setattr(base_scores, "generate", partial(drawn, hand_of=lambda _: "noto"))
    assert base_scores.hand_scores(base, 10)["hand_ssim"] < 0.8 and base_scores.hand_scores(base, 10)["hand"] < 0.3
    folder = shutil.copytree(folder_of("tiny-flux"), tmp_path / "tiny-flux")
    card = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").write_text(json.dumps(card | {"base": card["base"] | scores}))
    assert "| 10 captions that name a hand: content accuracy |" in model_card.write_card(folder).read_text()


def test_a_checkpoint_is_scored_though_the_base_that_its_run_began_from_is_gone(flux_checkpoint, tmp_path):
    path, _ = flux_checkpoint
    state = torch.load(path, weights_only=True)
    changed_checkpoint(path, settings=state["settings"] | {"start": str(tmp_path / "gone")})
    run = base_scores.averaged_run("tiny-flux", path)
    assert run.step == 1 and torch.equal(
        run.average["transformer.x_embedder.weight"], state["average"]["transformer.x_embedder.weight"]
    )


def test_adapters_of_other_weights_are_never_scored_as_those_of_a_base(tmp_path):
    """A base that was pre-trained anew into the same folder has the shapes of the one before."""
    base = open_base("tiny-flux", "cpu", "float32")
    layer = "transformer_blocks.0.attn.add_q_proj"
    o, i = base.weight(layer).shape
    own = fingerprint([(layer, base.weight(layer))])
    header = Header(family="flux", component="transformer", base="runs/tiny-flux", role="content", fingerprint=own)
    path = tmp_path / "content-robot-qr.safetensors"
    save(Adapter({layer: Pair(torch.zeros(2, i), torch.zeros(o, 2))}, header), path)
    base_scores.check_adapters(base, tmp_path, "qr")
    with torch.no_grad():
        base.model.get_parameter(f"{layer}.weight").mul_(1.1)
    with pytest.raises(ValueError, match="content-robot-qr.safetensors was not trained on the weights of tiny-flux"):
        base_scores.personalisation_scores(base, tmp_path)
    base_scores.check_adapters(base, tmp_path, "lora")


@pytest.mark.usefixtures("excerpt_alone")
def test_a_record_and_its_card_count_the_drawings_that_a_base_was_trained_on(tmp_path, two_steps):
    """And say that they were the excerpt; of a record of before the card says nothing."""
    pretrain.pretrain("tiny-flux", tmp_path, dataclasses.replace(two_steps, samples=6), "cpu", 100, FOREVER)
    run = PretrainingRun("tiny-flux", two_steps, "cpu")
    run.step = 1
    folder = tmp_path / "tiny-flux"
    record = base_export.export_base(run, tmp_path / "log.jsonl", folder)
    assert record["drawings"].keys() == set(KNOWN_HANDS) and record["excerpt"]
    assert record["drawings"][PLAIN_HAND] == len(known_contents()) and record["drawings"]["fluent"] < 100
    shutil.copy(folder_of("tiny-flux") / "scores.json", folder)
    card = model_card.write_card(folder).read_text()
    assert " --excerpt`" in card and "noto 400, fluent-3d 40" in card and "35, the excerpt that ships." in card
    shutil.copy(folder_of("tiny-flux") / "training.json", folder)
    card = model_card.write_card(folder).read_text()
    assert card == (folder_of("tiny-flux") / "README.md").read_text()


def test_full_sheets_are_all_that_pre_training_asks_for(monkeypatch, tmp_path):
    monkeypatch.setattr(drawings, "full_sheet_folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"render_sheets` makes them, --excerpt trains on the excerpt"):
        drawings.check_full_sheets(KNOWN_HANDS)
    for hand in KNOWN_HANDS:
        (tmp_path / f"{hand}.webp").touch()
    drawings.check_full_sheets(KNOWN_HANDS)


# ---------------------------------------------------------------------------------------------------------------- kills


def started(folder, latents):
    """The command as a process, with a row of the log every third step; its run is in a folder."""
    words = f"tiny-flux --run {folder} --latents {latents} --excerpt --samples 48 --batch-size 4 --warmup 1 --every 5"
    script = "from qrlora.world import pretrain; pretrain.LOG_EVERY = 3; pretrain.main()"
    with open(folder.with_suffix(".log"), "a") as log:
        return subprocess.Popen([sys.executable, "-c", script, *words.split()], stdout=log, stderr=log)


def killed_when(process, reached):
    """Kill a process as soon as something is so, while it lives."""
    while not reached() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def found(folder, pattern):
    """Whether a file of that pattern is somewhere in a folder."""
    with contextlib.suppress(FileNotFoundError):  # one may go while it is looked for
        return any(folder.rglob(pattern))
    return False


def losses_of(folder):
    return [(row["step"], row["loss"]) for row in pretraining_log.read_log(folder / "log.jsonl")]


@pytest.mark.processes
def test_pre_training_that_was_killed_again_and_again_exports_the_bytes_of_a_run_that_was_not(tmp_path):
    """Before its first checkpoint, a row of the log past it, and while the base is written; nothing is left over."""
    latents = tmp_path / "few.safetensors"
    settings = PretrainingSettings()
    digest = pretraining_set.training_set_digest(
        load_trained_vae("tiny-flux"), settings.styled_hands, settings.random, settings.seed
    )
    pretraining_set.save_training_set(latents, few_latents("tiny-flux"), digest)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert started(whole, latents).wait() == 0, whole.with_suffix(".log").read_text()
    log, last = cut / "log.jsonl", cut / "last.pt"
    killed_when(started(cut, latents), lambda: log.exists() and log.stat().st_size > 0)
    killed_when(started(cut, latents), lambda: last.exists() and pretraining_log.read_log(log)[-1]["step"] > 5)
    killed_when(started(cut, latents), lambda: found(cut, "*.partial.folder/new/*/*"))
    assert not (cut / "tiny-flux").exists()
    assert started(cut, latents).wait() == 0, cut.with_suffix(".log").read_text()
    one, other = (contents_of(folder / "tiny-flux") for folder in (whole, cut))
    records = [json.loads(files.pop("training.json")) for files in (one, other)]
    assert one == other and len(one) > 10
    for record in records:
        assert record.pop("machine").startswith("on ")  # and how long it took
    assert records[0] == records[1]
    assert losses_of(whole) == losses_of(cut)
    assert sorted(os.listdir(cut)) == sorted(os.listdir(whole))
