"""Settings say what they are, refuse what they are not, and leave open what the base knows better."""

import json
from pathlib import Path

import pytest

from qrlora.built_in_bases import FOLDER
from qrlora.config import FamilyDefaults, SampleConfig, TrainConfig, as_dict, read_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


def test_the_papers_settings_are_the_defaults():
    """Section 5.1 of the paper: rank 64, Adam, 1e-4, 500 steps, one picture; 50 denoising steps for SDXL."""
    config = TrainConfig(image="dog.png").filled(FamilyDefaults())
    chosen = (config.method, config.rank, config.targets, config.optimizer, config.learning_rate, config.steps)
    assert chosen == ("qr", 64, "self", "adam", 1e-4, 500)
    assert (config.batch_size, config.resolution, config.prompt) == (1, 1024, "a <c>")
    assert SampleConfig(prompt="a <c>").filled(FamilyDefaults()).steps == 50


def test_what_a_person_chose_outlasts_the_bases_defaults():
    defaults = FamilyDefaults().with_base_defaults(
        {"train": {"rank": 8, "steps": 200}, "sample": {"steps": 20, "guidance": 3}}
    )
    config = TrainConfig(image="dog.png", rank=4).filled(defaults)
    assert (config.rank, config.steps, config.learning_rate) == (4, 200, 1e-4)
    assert SampleConfig(steps=7).filled(defaults) == SampleConfig(steps=7, guidance=3, size=1024)


def test_a_base_may_prefer_other_settings_for_a_role_or_a_method():
    own = {"lora": {"learning_rate": 2e-3}, "style": {"steps": 300}, "style/lora": {"steps": 100}}
    defaults = FamilyDefaults().with_base_defaults({"train": {"rank": 8, **own}})
    for role, method, wanted in [
        ("content", "qr", (8, 1e-4, 500)),
        ("content", "lora", (8, 2e-3, 500)),
        ("style", "qr", (8, 1e-4, 300)),
        ("style", "lora", (8, 2e-3, 100)),
    ]:
        config = TrainConfig(image="x.png", role=role, method=method).filled(defaults)
        assert (config.rank, config.learning_rate, config.steps) == wanted


def test_more_images_are_trained_on_for_more_updates_unless_somebody_says_how_many():
    """Half as many times as there are images, from once to three times."""
    defaults = FamilyDefaults().with_base_defaults({"train": {"steps": 200, "style": {"steps": 30}}})
    for role, wanted in (("content", [200, 200, 300, 400, 600, 600]), ("style", [30, 30, 45, 60, 90, 90])):
        left_open, chosen = TrainConfig(image="x", role=role), TrainConfig(image="x", role=role, steps=7)
        assert [left_open.filled(defaults, images).steps for images in (1, 2, 3, 4, 6, 24)] == wanted
        assert chosen.filled(defaults, 8).steps == 7


def test_a_base_with_a_misspelt_default_is_refused():
    with pytest.raises(ValueError, match="no setting 'rnk'; did you mean 'rank'"):
        FamilyDefaults().with_base_defaults({"train": {"rnk": 8}})
    with pytest.raises(ValueError, match="steps must be a whole number, got 'many'"):
        FamilyDefaults().with_base_defaults({"train": {"style": {"steps": "many"}}})


def test_a_recipe_and_overrides_make_a_config(tmp_path):
    recipe = tmp_path / "run.toml"
    recipe.write_text('image = "cat.png"\nrole = "style"\nsteps = 800\n')
    config = read_recipe(recipe, ["steps=900", "prompt=a cat in <s> style", "learning_rate=2e-4", "tensorboard=true"])
    assert (config.steps, config.prompt, config.learning_rate) == (900, "a cat in <s> style", 2e-4)
    assert config.tensorboard is True and config.trigger == "<s>"


def test_text_needs_no_quotes_in_an_override_and_may_have_them():
    for written in ("prompt=a 5", 'prompt="a 5"', "prompt = 'a 5'"):
        assert read_recipe(None, [written, "trigger=5"]).prompt == "a 5"
    sample = read_recipe(None, ['adapters=["a.safetensors"]', "strengths=[1]"], SampleConfig)
    assert sample.adapters == ("a.safetensors",) and sample.strengths == (1.0,)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rnk=3", "no setting 'rnk'; did you mean 'rank'?"),
        ("zzzzqq=3", "no setting 'zzzzqq'; known are base, draw_with, image, crop, mask, role"),
        ("steps", "an override reads name=value, got 'steps'"),
        ("rank=0", "rank must be 1 or more, got 0"),
        ("rank=eight", "rank must be a whole number, got 'eight'"),
        ("steps=1.5", "steps must be a whole number, got 1.5"),
        ("seed=true", "seed must be a whole number, got True"),
        ("learning_rate=-1", "learning_rate must be a positive number such as 1e-4, got -1"),
        ("learning_rate=nan", "learning_rate must be a number, got nan"),
        ("learning_rate=inf", "learning_rate must be a positive number such as 1e-4, got inf"),
        ("lr_decay=1.5", "lr_decay must be a fraction of the updates, 0..1, got 1.5"),
        ("role=colour", "role must be one of content, style, got 'colour'"),
        ("dtype=int8", "dtype must be one of auto, float32, bfloat16, float16, got 'int8'"),
        ("tensorboard=yes", "tensorboard must be true or false, got 'yes'"),
        ("save_every=-1", "save_every must be 0 or more, got -1"),
        (f"steps={10**30}", "steps must be 1000000000 or less, got 1000000000000000000000000000"),
        (f"seed={2**64}", "seed must be 9223372036854775807 or less, got 18446744073709551616"),
        (f"learning_rate={10**400}", "learning_rate must be a positive number such as 1e-4, got 1000000"),
        (f"min_snr_gamma={10**400}", "min_snr_gamma must be 1000000000 or less, got 1000"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(override, message):
    with pytest.raises(ValueError) as caught:
        read_recipe(None, [override])
    assert str(caught.value).startswith(message)


def test_a_file_that_is_no_recipe_is_named(tmp_path):
    for name, content in (("a.toml", b"= what"), ("picture.png", b"\x89PNG\r\n\x1a\n\xff\xfe")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not a TOML recipe"):
            read_recipe(tmp_path / name)
    with pytest.raises(OSError, match="missing.toml"):
        read_recipe(tmp_path / "missing.toml")


def test_a_prompt_must_hold_its_trigger_word():
    assert TrainConfig(image="x.png").checked().prompt == "a <c>"
    with pytest.raises(ValueError, match="the prompt 'a dog' lacks its trigger word '<c>': try 'a <c>'"):
        TrainConfig(image="x.png", prompt="a dog").checked()
    with pytest.raises(ValueError, match="lacks its trigger word 'sks'"):
        TrainConfig(image="x.png", prompt="he asks", trigger="sks").checked()
    with pytest.raises(ValueError, match="a style needs a caption of its image: prompt='a cat in <s> style'"):
        TrainConfig(image="x.png", role="style").checked()
    with pytest.raises(ValueError, match="no training image"):
        TrainConfig().checked()


def test_one_strength_for_each_adapter():
    assert SampleConfig(adapters=("a", "b")).strengths == (1.0, 1.0)
    with pytest.raises(ValueError, match="2 adapters and 1 strengths: give one strength for each"):
        SampleConfig(adapters=("a", "b"), strengths=(1.0,))
    with pytest.raises(ValueError, match="strengths must be finite"):
        SampleConfig(adapters=("a",), strengths=(float("inf"),))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapters": "dog.safetensors"}, "adapters must be a list, each text, got 'dog.safetensors'"),
        ({"adapters": None}, "adapters must be a list, each text, got None"),
        ({"adapters": ["a"], "strengths": [10**400]}, "strengths must be finite numbers of at most 1000 in size"),
        ({"prompt": None}, "prompt must be text, got None"),
        ({"steps": 10**30}, "steps must be 1000000000 or less"),
    ],
)
def test_a_setting_of_another_type_is_named_from_python_too(settings, message):
    with pytest.raises(ValueError) as caught:
        SampleConfig(**settings)
    assert str(caught.value).startswith(message)


def test_a_config_survives_json():
    """An adapter file's header holds the config of its run, so it must come back from JSON unchanged."""
    config = TrainConfig(image=Path("dog.png"), output=Path("out") / "dog.safetensors", rank=4, learning_rate=1e-3)
    assert TrainConfig(**json.loads(json.dumps(as_dict(config)))) == config
    sample = SampleConfig(prompt="a <c>", adapters=("a",), strengths=(0.5,))
    assert SampleConfig(**json.loads(json.dumps(as_dict(sample)))) == sample


def test_checkpoints_stand_beside_the_output_unless_told():
    assert TrainConfig(output="runs/dog.safetensors").checkpoints == Path("runs/dog.checkpoint")
    assert TrainConfig(output="runs/dog.safetensors", checkpoint_dir="elsewhere").checkpoints == Path("elsewhere")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_each_recipe_can_start(path):
    """Every recipe of the repository is complete but for the picture, which is the user's."""
    read_recipe(path, ["image=mine.png"]).checked()


def test_recipes_for_built_in_bases_start_on_the_one_that_every_installation_has():
    bases = {path.name: read_recipe(path, ["image=mine.png"]).base for path in RECIPES}
    built_in = {name: base for name, base in bases.items() if base.startswith("tiny-")}
    assert built_in == dict.fromkeys(("content_tiny.toml", "style_tiny.toml"), "tiny-flux")
    assert (FOLDER / "tiny-flux" / "model_index.json").is_file()


def test_there_are_recipes():
    assert {"content_sdxl.toml", "style_sdxl.toml"} <= {path.name for path in RECIPES}
