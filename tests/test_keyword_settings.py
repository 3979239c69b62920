"""`qrlora.train` and `qrlora.generate` take alike arguments: a config or keywords, an open base or a name."""

import pytest

import pico
import qrlora

STEPS = 1


def test_a_training_by_keywords_is_that_of_the_config(studio, tmp_path):
    base = str(pico.folder())
    settings = {"image": studio / "dog.png", "steps": STEPS, "learning_rate": 1e-3}
    opened = qrlora.open_base(base)
    for name, call in {
        "config": lambda output: qrlora.train(qrlora.TrainConfig(**settings, base=base, output=output)),
        "keyword config": lambda output: qrlora.train(config=qrlora.TrainConfig(**settings, base=base, output=output)),
        "keywords": lambda output: qrlora.train(**settings, base=base, output=output),
        "open base": lambda output: qrlora.train(**settings, base=opened, output=output),
    }.items():
        call(tmp_path / f"{name}.safetensors")
    ours, *others = [{k: v.B for k, v in qrlora.load(x).layers.items()} for x in sorted(tmp_path.iterdir())]
    assert others and all((one[k] == ours[k]).all() for one in others for k in ours)


def test_images_by_keywords_are_those_of_the_config_and_of_an_open_base(studio):
    dog, base = studio / "dog.safetensors", str(pico.folder())
    config = qrlora.SampleConfig(base=base, prompt="a <c>", adapters=(str(dog),), strengths=(0.5,), steps=STEPS, seed=3)
    opened, adapter = qrlora.open_base(base), qrlora.load(dog)
    named = {"steps": STEPS, "seed": 3}
    made = [
        qrlora.generate(config),
        qrlora.generate(config=config),
        qrlora.generate(opened, config=config),
        qrlora.generate(opened, "a <c>", [(adapter, 0.5)], **named),
        qrlora.generate(base, "a <c>", [(dog, 0.5)], **named),
        qrlora.generate(base=base, prompt="a <c>", adapters=[(str(dog), 0.5)], device="cpu", **named),
    ]
    assert len({image.tobytes() for (image,) in made}) == 1
    full = [qrlora.generate(opened, "a <c>", [x], **named)[0].tobytes() for x in (dog, adapter, (adapter, 1.0))]
    assert len(set(full)) == 1 and full[0] != made[0][0].tobytes()


def test_what_cannot_be_meant_is_refused_with_the_way_out(studio):
    config, opened = qrlora.TrainConfig(image="a.png"), qrlora.open_base(str(pico.folder()))
    for wrong, message in (
        (lambda: qrlora.train(config, steps=3), "steps beside a config: give a config or keywords"),
        (lambda: qrlora.train(stesp=3), "no setting 'stesp'; did you mean 'steps'"),
        (lambda: qrlora.train(qrlora.SampleConfig()), "a TrainConfig is needed, got SampleConfig"),
        (lambda: qrlora.generate(qrlora.SampleConfig(), steps=3), "steps beside a config"),
        (lambda: qrlora.generate(qrlora.SampleConfig(), dtype="float32"), "dtype beside a config"),
        (lambda: qrlora.generate(opened, "a", dtype="float32"), "dtype say how a base is opened, and this one is open"),
        (
            lambda: qrlora.generate(opened.pipe, "a"),
            "must be an open base or a name, got StableDiffusionXL",
        ),
        (lambda: qrlora.generate(opened, "a", stesp=3), "no setting stesp"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.warns(DeprecationWarning, match="the setting decay is now lr_decay"), pytest.raises(ValueError):
        qrlora.train(decay=0.5, image="")
