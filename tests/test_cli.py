"""The commands do what their help says."""

import re
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pico
from commands import run
from qrlora import files, plots
from qrlora.adapter import Adapter, Header, Pair, name_ends_in
from qrlora.cli import adapter_tables, demo_sheet, progress_bar, tables
from qrlora.cli.verbs import VERBS
from qrlora.config import read_recipe
from qrlora.families import FAMILIES
from qrlora.layouts import LAYOUTS
from qrlora.world.captions import caption, with_article
from qrlora.world.classified_images import ClassifiedImages
from qrlora.world.classifiers import Classification
from qrlora.world.demo import MERGED, TRUTH

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_that_names_the_command(verb, capsys):
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0 and f"Example: qrlora {verb}" in out


def test_without_a_command_the_help_lists_all(capsys):
    code, out, _ = run(capsys)
    assert code == 0 and all(re.search(rf"│ {verb} ", out) for verb in VERBS)


def test_every_setting_is_explained(capsys):
    code, out, _ = run(capsys, "train", "--settings")
    assert code == 0
    for name in ("learning_rate", "preview_every", "min_snr_gamma", "checkpoint_dir"):
        assert re.search(rf"^ +{name} ", out, re.MULTILINE)


def test_train_says_what_it_wrote_and_how_to_use_it(studio, tmp_path, capsys):
    output = tmp_path / "dog.safetensors"
    words = [f"image={studio / 'dog.png'}", f"base={pico.folder()}", f"output={output}", "rank=4", "steps=2"]
    code, out, err = run(capsys, "train", *words)
    assert code == 0, err
    assert "rank 4" in out and shlex.join(["qrlora", "generate", "a <c>", str(output)]) in out
    assert "dog 2/2 loss" in err
    assert files.read_header(output).config["steps"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["dog.safetensors"]


@pytest.mark.parametrize("family", pico.BASES)
def test_two_pictures_become_one_picture_on_every_family(family, studio, tmp_path, capsys):
    """train, train, merge, inspect, generate, grid: the whole way in the shell."""
    base, dog, ink, both = pico.folder(family), *(tmp_path / f"{x}.safetensors" for x in ("dog", "ink", "both"))
    common = [f"base={base}", "steps=3", "gradient_checkpointing=true"]
    style = ["role=style", "prompt=a cat in <s> style", f"image={studio / 'cat.png'}", f"output={ink}"]
    prompt, picture = "a <c> in <s> style", ["--base", base, "--steps", 2]
    for words in (
        ["train", *common, f"image={studio / 'dog.png'}", f"output={dog}"],
        ["train", *common, *style],
        ["merge", dog, f"{ink}=0.5", "-o", both],
        ["inspect", dog, ink, "--plot", tmp_path / "alike.png"],
        ["generate", prompt, both, *picture, "-o", tmp_path / "picture.png"],
        ["grid", dog, ink, *picture, "--content-strengths", "1", "--style-strengths", "0,1", "-o", tmp_path / "g.png"],
    ):
        code, _, err = run(capsys, *words)
        assert code == 0, err
    assert files.read_header(both).family == family
    with Image.open(tmp_path / "picture.png") as image:
        assert image.size == (pico.side_of(family), pico.side_of(family))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_the_papers_on_its_family(path):
    """Readable as it is; a recipe of a real base holds the defaults of its family, so that both say the same."""
    config, family = read_recipe(path, ["image=x.png"]).checked(), path.stem.partition("_")[2]
    assert config.role == path.stem.partition("_")[0]
    if family in FAMILIES:
        own = FAMILIES[family].defaults
        given = {name: getattr(config, name) for name in ("rank", "targets", "steps", "learning_rate")}
        assert given == {name: getattr(own, name) for name in given}
        assert (
            config.min_snr_gamma == 0
            and config.base.split("/")[0] in LAYOUTS[family].variants[LAYOUTS[family].example].hub
        )


def test_a_recipe_is_read_and_the_command_line_wins(studio, tmp_path, capsys):
    recipe = tmp_path / "run.toml"
    recipe.write_text(
        f'base = "{pico.folder()}"\nimage = "{studio / "dog.png"}"\nrank = 3\nsteps = 9\nmethod = "lora"\n'
    )
    code, _, err = run(capsys, "train", recipe, "steps=1", f"output={tmp_path / 'a.safetensors'}")
    assert code == 0, err
    header = files.read_header(tmp_path / "a.safetensors")
    assert (header.method, header.rank, header.config["steps"]) == ("lora", 3, 1)


def test_previews_are_pictures_beside_the_output(studio, tmp_path, capsys):
    output = tmp_path / "dog.safetensors"
    words = [f"image={studio / 'dog.png'}", f"base={pico.folder()}", f"output={output}", "steps=4", "preview_every=2"]
    code, _, err = run(capsys, "train", *words)
    assert code == 0, err
    for name in ("dog-00002.png", "dog-00004.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (pico.SIZE, pico.SIZE) and '"preview_every": 2' in picture.info["qrlora"]


def test_merge_writes_the_weighted_sum(studio, tmp_path, capsys):
    dog, cat, output = studio / "dog.safetensors", studio / "cat.safetensors", tmp_path / "both.safetensors"
    code, out, err = run(capsys, "merge", dog, f"{cat}=0.5", "-o", output)
    assert code == 0, err
    assert f"{cat}: strength 0.5, 100.00% of its squared norm kept" in out
    a, b, both = files.load(dog), files.load(cat), files.load(output)
    for layer in both.layers:
        torch.testing.assert_close(both.dense(layer), a.dense(layer) + 0.5 * b.dense(layer))
    assert both.rank == a.rank and [p["weight"] for p in both.header.parents] == [1.0, 0.5]


def test_merge_stacks_adapters_of_any_method(studio, tmp_path, capsys):
    other = tmp_path / "lora=1.safetensors"  # a file's own "=" is not a strength
    words = [f"image={studio / 'dog.png'}", f"base={pico.folder()}", "steps=1", "method=lora", "rank=2"]
    assert run(capsys, "train", *words, f"output={other}")[0] == 0
    files_in = [studio / "dog.safetensors", other]
    code, _, err = run(capsys, "merge", *files_in, "-o", tmp_path / "sum.safetensors")
    assert code == 2 and "rule='stack'" in err and not (tmp_path / "sum.safetensors").exists()
    code, out, _ = run(capsys, "merge", *files_in, "--rule", "stack", "-o", tmp_path / "stack.safetensors")
    assert code == 0 and "rank 6" in out


def test_generate_takes_the_base_from_nowhere_but_the_adapters_or_the_option(studio, tmp_path, capsys):
    output = tmp_path / "new" / "picture.png"
    words = ["a <c> in <s> style", studio / "dog.safetensors", f"{studio / 'cat.safetensors'}=0.7"]
    code, out, err = run(capsys, "generate", *words, "--base", pico.folder(), "-o", output, "--seed", 5)
    assert code == 0, err
    assert out.strip() == str(output)
    with Image.open(output) as picture:
        assert picture.size == (pico.SIZE, pico.SIZE) and '"strengths": [1.0, 0.7]' in picture.info["qrlora"]


def test_generate_writes_each_picture_and_a_sheet_of_them(studio, tmp_path, capsys):
    words = ["a <c>", studio / "dog.safetensors", "--base", pico.folder(), "--count", 3, "--seed", 7]
    code, _, err = run(capsys, "generate", *words, "-o", tmp_path / "dogs.png")
    assert code == 0, err
    assert {p.name for p in tmp_path.iterdir()} == {"dogs.png", "dogs-7.png", "dogs-8.png", "dogs-9.png"}
    code, _, _ = run(capsys, "generate", *words[:4], "--seed", 8, "-o", tmp_path / "one.png")
    first, second = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("dogs-8.png", "one.png"))
    assert abs(first - second).max() <= 1  # picture k of seed s is picture 0 of seed s + k


def test_grid_draws_every_pair_of_strengths(studio, tmp_path, capsys):
    words = [studio / "dog.safetensors", studio / "cat.safetensors", "--base", pico.folder(), "--steps", 2]
    code, out, err = run(
        capsys, "grid", *words, "--content-strengths", "0,1", "--style-strengths", "0,0.5,2", "-o", tmp_path / "g.png"
    )
    assert code == 0, err
    assert out.strip() == str(tmp_path / "g.png") and "drawing 6/6" in err
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.width > picture.height > 400


def test_inspect_shows_what_a_file_is_and_where_it_comes_from(studio, tmp_path, capsys):
    both = tmp_path / "both.safetensors"
    run(capsys, "merge", studio / "dog.safetensors", f"{studio / 'cat.safetensors'}=0.5", "-o", both)
    code, out, err = run(capsys, "inspect", studio / "dog.safetensors")
    assert code == 0, err
    for line in (
        "role +content",
        "trigger +<c>",
        "prompt +a <c>",
        "rank +4",
        "layers +.*targets self",
        "image dog.png",
    ):
        assert re.search(line, out), line
    assert "of LoRA's" in out and "learning_rate 0.01" in out and not list(tmp_path.glob("*.png"))
    code, out, _ = run(capsys, "inspect", both)
    assert re.search(r"content <c> qr from dog.png +1 +100.00%", out)
    assert re.search(r"style <s> qr from cat.png +0.5 +100.00%", out)


def test_inspect_compares_two_files_in_a_table_and_a_plot(studio, tmp_path, capsys):
    plot = tmp_path / "alike.png"
    dog = studio / "dog.safetensors"
    code, out, err = run(capsys, "inspect", dog, studio / "cat.safetensors", "--plot", plot)
    assert code == 0, err
    blocks = [line.split()[0] for line in out.splitlines() if re.match(r" +(down|mid|up|all) ", line)]
    assert blocks == ["down", "down", "mid", "up", "up", "up", "up", "all"] and f"plot: {plot}" in out
    with Image.open(plot) as picture:
        assert picture.width > 1000
    code, out, _ = run(capsys, "inspect", dog, dog, "--layers", "--plot", plot, "--overwrite")
    layers = [line for line in out.splitlines() if "attn1.to_" in line]
    assert len(layers) == len(files.load(dog).layers) and all(re.search(r"1\.000 +1\.000 +1\.000", x) for x in layers)


def test_a_foreign_lora_can_be_inspected(tmp_path, capsys):
    from safetensors.torch import save_file

    path = tmp_path / "foreign.safetensors"
    save_file({"unet.a.to_q.lora_A.weight": torch.ones(2, 8), "unet.a.to_q.lora_B.weight": torch.ones(6, 2)}, path)
    code, out, err = run(capsys, "inspect", path)
    assert code == 0, err
    assert "unknown: not written by qrlora" in out and re.search("rank +2", out)


def test_qr_trains_half_of_loras_parameters_on_sdxls_real_layers(tmp_path):
    """280 self-attention layers: 21.3 M against 42.6 M, from the real shapes, with nothing allocated."""
    shapes = {name: shape for name, shape in sdxl_attention() if ".attn1." in name}
    assert (len(shapes), len(dict(sdxl_attention()))) == (280, 560)
    assert all(name_ends_in(name, ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"]) for name in shapes)
    layers = {n: Pair(torch.zeros(1, 1).expand(64, i), torch.zeros(1, 1).expand(o, 64)) for n, (o, i) in shapes.items()}
    adapter = Adapter(layers, Header(family="sdxl", method="qr", rank=64))
    path = tmp_path / "empty"
    path.touch()
    assert (
        dict(adapter_tables.file_facts(path, adapter))["trainable"]
        == "21,299,200 (21.3 M), 50.0% of LoRA's 42,598,400 (42.6 M)"
    )


def sdxl_attention():
    """(name, (outputs, inputs)) of the attention projections of SDXL 1.0's UNet, from diffusers' own class."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear) and re.search(r"attn[12]\.to_(q|k|v|out\.0)$", name):
            yield name, (module.out_features, module.in_features)


def test_bases_says_what_can_be_a_base(capsys):
    code, out, err = run(capsys, "bases")
    assert code == 0, err
    assert "stabilityai/stable-diffusion-xl-base-1.0" in out and "self, attention" in out
    assert (
        "black-forest-labs/FLUX.1-dev" in out
        and "attention, attention-dual" in out
        and all(variant.hub in out for layout in LAYOUTS.values() for variant in layout.variants.values())
    )


def test_the_demos_sheet_shows_what_is_given_what_is_true_and_what_came_out():
    """Green where the judges see what they should, red where not; no verdict where nobody knows."""
    picture = Image.new("RGB", (64, 64))
    owl, cat = Classification("owl", "dusk", 0.9, 0.8), Classification("cat", "dusk", 0.6, 0.7)
    rows = [
        ClassifiedImages("a subject: “<c>”", [picture], [owl]),
        ClassifiedImages("a style: “pop”", [picture], [cat], "", "dusk"),
        ClassifiedImages(TRUTH, [picture], [owl], "owl", "dusk"),
        ClassifiedImages(MERGED, [picture] * 2, [cat, Classification("owl", "none", 0.6, 0.95)], "owl", "dusk"),
    ]
    figure = demo_sheet.contact_sheet(rows, "seed 0")
    notes = [[(text.get_text(), text.get_color()) for text in axes.texts] for axes in figure.axes]
    assert notes == [
        [],
        [("dusk 70% ✓", plots.GOOD)],
        [("owl 90% ✓", plots.GOOD), ("dusk 80% ✓", plots.GOOD)],
        [("cat 60% ✗", plots.BAD), ("dusk 70% ✓", plots.GOOD)],
        [("owl 60% ✓", plots.GOOD), ("no style 95% ✗", plots.BAD)],
    ]
    texts = [text.get_text().replace("\n", " ") for text in figure.texts]
    assert texts == ["A subject and a style, each from one picture, added", "seed 0"] + [
        *(row.title for row in rows[:3]),
        f"{demo_sheet.LEGEND} {demo_sheet.WORDS_LEGEND}",
        MERGED,
    ]


def test_prose_has_the_article_that_people_say():
    """The captions themselves keep "a": with those the built-in bases were trained."""
    said = {name: with_article(name) for name in ("owl", "robot", "umbrella", "one piece swimsuit", "euro banknote")}
    assert said == {
        "owl": "an owl",
        "robot": "a robot",
        "umbrella": "an umbrella",
        "one piece swimsuit": "a one piece swimsuit",
        "euro banknote": "a euro banknote",
    }
    assert [with_article(name) for name in ("ewe", "hourglass done", "honeybee")] == [
        "a ewe",
        "an hourglass done",
        "a honeybee",
    ]
    assert caption("owl", "<s>") == "a owl in <s> style"


def test_only_a_base_of_the_package_is_said_to_know_drawings_only():
    assert "knows drawings only" in demo_sheet.limits_of_base("tiny-sd3")
    for other in (str(pico.folder()), "owner/name", ""):
        assert demo_sheet.limits_of_base(other) == ""


def test_of_ones_own_pictures_nobody_pretends_to_know_what_they_show(tmp_path, capsys, monkeypatch):
    """Of a known thing in one's own style the thing alone is judged; terminal and sheet say what the base is."""
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path, overwrite: drawn.append(figure) or path)
    photo = tmp_path / "my dog.jpg"
    Image.effect_noise((80, 80), 60).convert("RGB").save(photo)
    words = ["demo", "--style", photo, "--style-shows", "dog", "--steps", 1, "--count", 1, "-o", tmp_path / "out"]
    code, out, err = run(capsys, *words, "--placeholders")  # the search for words takes longer than the rest
    assert code == 0, err
    assert "knows drawings only" in err and "qrlora train recipes/content_sdxl.toml" in err
    assert "right subject" not in out
    (figure,) = drawn
    assert any("knows drawings only" in text.get_text() for text in figure.texts)
    titles = [text.get_text().replace("\n", " ") for text in figure.texts[2:]]
    titles.remove(demo_sheet.LEGEND)
    notes = {title: len(axes.texts) for title, axes in zip(titles, figure.axes, strict=True)}
    assert list(notes.values()) == [2, 0, 2, 1, 1], notes  # the style of whatever was trained on a photograph: unknown


def test_of_ones_own_pictures_nobody_pretends_to_know_on_any_base(tmp_path, capsys):
    photo = tmp_path / "my dog.jpg"
    Image.effect_noise((80, 80), 60).convert("RGB").save(photo)
    words = ["demo", "--content", photo, "--base", pico.folder("flux"), "--steps", 1, "--count", 1]
    code, out, err = run(capsys, *words, "-o", tmp_path / "out")
    assert code == 0 and "right subject" not in out, err


@pytest.mark.parametrize("name", ["merged.safetensors", "demo.png"])
def test_a_demo_replaces_no_file_that_is_no_demos(name, tmp_path, capsys):
    (tmp_path / name).write_text("mine")
    code, _, err = run(capsys, "demo", "-o", tmp_path)
    assert code == 2 and name in err and "--overwrite" in err
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_a_demo_of_a_picture_that_cannot_be_read_writes_nothing(tmp_path, capsys):
    (tmp_path / "style.png").write_text("no picture")
    code, _, err = run(capsys, "demo", "--style", tmp_path / "style.png", "-o", tmp_path / "out")
    assert code == 2 and "style.png" in err and not (tmp_path / "out").exists()


def test_time_left_counts_from_the_first_report():
    """A resumed run at 900 of 1000 has not done 900 updates in the seconds since its start."""
    with progress_bar.progress_bar("run") as bar:
        bar.stage("opening the base model")
        bar.step(900, 1000)
        task = bar._task
        task.fields.update(since=task.fields["since"] - 10, begun=task.fields["begun"] - 70)
        bar.step(950, 1000, "loss 0.1")
        assert progress_bar.Clock().render(task).plain == "1:10, 0:10 left"
        bar.name("another")
        assert "left" not in progress_bar.Clock().render(task).plain


def test_a_stage_says_how_long_it_still_takes_also_where_nobody_watches(capsys):
    """A quarter done in a minute: three to go; then the work itself, whose time is counted by itself."""
    with progress_bar.progress_bar("estimating") as bar:
        bar.stage("counting", 0.0)
        task = bar._task
        task.fields.update(since=task.fields["since"] - 60, begun=task.fields["begun"] - 60)
        bar.stage("counting", 0.25)
        bar._shown -= 60
        bar.print_line_if_due()
        assert capsys.readouterr().err == "estimating: counting 25% 1:00, 3:00 left\n"
        bar.stage("counting", 0.5)
        bar.print_line_if_due()
        assert not capsys.readouterr().err, "a line every 30 seconds"
        bar.step(900, 1000)
        task.fields.update(since=task.fields["since"] - 10)
        bar.step(950, 1000)
        assert progress_bar.Clock().render(task).plain == "1:00, 0:10 left"


def test_a_stage_that_takes_long_says_that_it_has_begun_and_a_short_one_nothing(capsys):
    with progress_bar.progress_bar("dog") as bar:
        bar.stage("opening the base model")
        bar.print_line_if_due()
        assert not capsys.readouterr().err
        bar._begun -= 6
        bar.print_line_if_due()
        bar.print_line_if_due()
        assert capsys.readouterr().err == "dog: opening the base model 0:00\n"
        bar.stage("encoding the image and its caption")
        bar.print_line_if_due()
        assert not capsys.readouterr().err
        bar._begun -= 6
        bar.print_line_if_due()
        assert capsys.readouterr().err == "dog: encoding the image and its caption 0:00\n"


def test_a_stage_that_reports_nothing_is_named_by_the_clock_alone(capsys, monkeypatch):
    """The base is still being opened when its line appears."""
    monkeypatch.setattr(progress_bar, "BEGUN_AFTER", 0.0)
    with progress_bar.progress_bar("drawing") as bar:
        bar.stage("opening the base model")
        deadline = time.monotonic() + 60
        while not (shown := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert shown.startswith("drawing: opening the base model")


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (-0.0001, "0.000"), (float("nan"), "-"), (-1.0, "-1.000")]
)
def test_numbers_in_tables(value, text):
    assert tables.format_number(value) == text
