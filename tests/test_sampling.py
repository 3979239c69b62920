"""Pictures: those of the stock pipeline, each from its own seed, whatever the batch."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image

import pico
from loras import random_adapter
from qrlora.adapter import Adapter, Header, Pair
from qrlora.analysis import similarity, update_norms
from qrlora.families import FAMILIES, Base, open_base
from qrlora.files import load, save
from qrlora.image_loading import load_image
from qrlora.initialisation_methods import METHODS
from qrlora.injection import adapter_names, apply
from qrlora.merging import merge
from qrlora.sampling import generate, grid
from qrlora.training_example import encode_training_examples


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QRLORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base():
    return opened("sdxl")


@functools.cache
def opened(family, **changes):
    return open_base(pico.folder(family, **changes), "cpu")


@pytest.fixture(scope="module")
def learn(tmp_path_factory):
    """(method, role, family) -> file of an adapter of a few strong updates on a noise picture, learnt once."""
    from PIL import Image

    from qrlora.config import TrainConfig
    from qrlora.training import train

    folder = tmp_path_factory.mktemp("learnt")

    @functools.cache
    def learnt(method, role, family="sdxl"):
        seed = list(METHODS).index(method) + 10 * (role == "style")
        noise = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / "x.png")
        prompt = {"content": "a <c>", "style": "a dog in <s> style"}[role]
        file = folder / f"{family}-{method}-{role}.safetensors"
        where = {"image": folder / "x.png", "output": file, "device": "cpu"}
        train(TrainConfig(**where, method=method, role=role, prompt=prompt, learning_rate=0.1), base=opened(family))
        return file

    return learnt


def test_fewer_pictures_at_once_are_tried_where_memory_runs_out(base, monkeypatch):
    """The pictures are the same; who asks for a number gets it, or an error."""
    rows, denoise = [], type(base).denoise

    def in_little_memory(self, told, *rest):
        rows.append(len(told))
        if len(told) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return denoise(self, told, *rest)

    plain = generate(base, "a dog", count=5, steps=3)
    monkeypatch.setattr(type(base), "denoise", in_little_memory)
    monkeypatch.setattr("qrlora.sampling_batches.MAX_BATCH", 5)
    fewer = generate(base, "a dog", count=5, steps=3)
    assert rows == [5, 3, 2]
    for one, other in zip(plain, fewer, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1
    with pytest.raises(torch.cuda.OutOfMemoryError):
        generate(base, "a dog", count=5, steps=3, batch_size=4)


def adapter(base, seed, trigger="", size=0.5):
    """A strong random adapter: its pictures differ visibly from the base's."""
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: Pair(
            A=torch.randn(2, layer.in_features, generator=generator) * size,
            B=torch.randn(layer.out_features, 2, generator=generator) * size,
        )
        for name, layer in base.target_layers("attention").items()
    }
    return Adapter(layers=layers, header=Header(trigger=trigger, rank=2, role="content"))


def values(pictures):
    return np.stack([np.asarray(picture).astype(int) for picture in pictures])


def assert_same(pictures, others, levels=1):
    """Equal to a grey level: another batch or another order of sums moves the last bits of a float."""
    assert np.abs(values(pictures) - values(others)).max() <= levels


def assert_differ(pictures, others):
    assert np.abs(values(pictures) - values(others)).mean() > 2


@pytest.mark.parametrize("family", pico.BASES)
def test_without_adapters_pictures_are_the_stock_pipelines_bit_for_bit(family):
    base = opened(family)
    ours = generate(base, "a dog", seed=3, count=2)
    assert np.array_equal(values(ours), values(stock(base.pipe, "a dog", seeds=(3, 4))))


def test_sd3_without_t5_draws_the_stock_pipelines_pictures():
    base = opened("sd3", with_t5=False)
    assert_same(generate(base, "a dog", seed=3), stock(base.pipe, "a dog", seeds=(3,)))


@pytest.mark.parametrize("family", pico.BASES)
def test_picture_k_of_a_seed_is_picture_0_of_seed_plus_k(family):
    base = opened(family)
    many = generate(base, "a dog", seed=5, count=5, batch_size=3)
    alone = [generate(base, "a dog", seed=5 + k)[0] for k in range(5)]
    assert_same(many, alone)
    assert_differ(many[:1], many[1:2])


def test_each_picture_of_a_batch_may_have_its_own_prompt_and_seed(base):
    prompts, seeds = ["a dog", "a red car", "cat face"], [9, 9, 1]
    together = generate(base, prompts, seed=seeds, guidance=6.0)
    alone = [generate(base, p, seed=s, guidance=6.0)[0] for p, s in zip(prompts, seeds, strict=True)]
    assert_same(together, alone)
    assert_same(generate(base, prompts, seed=7), [generate(base, p, seed=7 + k)[0] for k, p in enumerate(prompts)])
    assert_same(generate(base, "a dog", seed=[4, 2]), [generate(base, "a dog", seed=s)[0] for s in (4, 2)])


def test_strengths_scale_the_sum_of_the_updates(base):
    """Two adapters at their strengths are their exact stack at strength 1, and strength 0 is the base."""
    one, two = adapter(base, 1), adapter(base, 2)
    plain = generate(base, "a dog")
    both = generate(base, "a dog", [(one, 0.7), (two, 0.4)])
    assert_same(both, generate(base, "a dog", [(merge([one, two], [0.7, 0.4], "stack"), 1.0)]))
    assert_differ(both, plain)
    assert np.array_equal(values(generate(base, "a dog", [(one, 0.0)])), values(plain))


def test_the_base_is_left_as_it_was(base):
    plain = generate(base, "a dog")
    generate(base, "a dog", [(adapter(base, 1), 1.0)])
    with pytest.raises(RuntimeError):
        generate(base, "a dog", [(adapter(base, 1), 1.0)], on_image=fail)
    assert adapter_names(base.model) == []
    assert np.array_equal(values(generate(base, "a dog")), values(plain))


def fail(done, total):
    raise RuntimeError("the caller failed")


@pytest.mark.parametrize(("method", "family"), pico.in_turn(METHODS, pico.BASES))
def test_a_learnt_file_in_stock_diffusers_gives_our_picture(family, method, learn):
    """Picture -> adapter -> file -> stock pipeline -> the picture that our own sampling gives."""
    base, file = opened(family), learn(method, "content", family)
    ours = generate(base, "a <c>", [(load(file), 0.8)], seed=2, count=2)
    pipe = stock_pipeline(family)
    pipe.load_lora_weights(str(file), adapter_name="it")
    pipe.set_adapters("it", 0.8)
    assert_same(ours, stock(pipe, "a <c>", seeds=(2, 3)))
    assert_differ(ours, generate(base, "a <c>", seed=2, count=2))


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # PEFT's, at every second file
@pytest.mark.parametrize("family", pico.BASES)
@pytest.mark.parametrize(("method", "rule"), [("qr", "sum"), ("lora", "stack")])
def test_a_merged_file_in_stock_diffusers_is_both_files_at_their_strengths(learn, tmp_path, method, rule, family):
    """set_adapters([content, style], [lc, ls]) of the two files, to float32 rounding."""
    files = learn(method, "content", family), learn(method, "style", family)
    save(merge([load(path) for path in files], [0.9, 0.6], rule), tmp_path / "merged.safetensors")
    answers = []
    for merged in (True, False):
        pipe = stock_pipeline(family)
        pipe.set_progress_bar_config(disable=True)
        if merged:
            pipe.load_lora_weights(str(tmp_path / "merged.safetensors"))
        else:
            for name, path in zip(("content", "style"), files, strict=True):
                pipe.load_lora_weights(str(path), adapter_name=name)
            pipe.set_adapters(["content", "style"], [0.9, 0.6])
        generator = torch.Generator().manual_seed(1)
        told = {**GUIDED.get(type(pipe).__name__, lambda n: {})(1), "output_type": "latent"}
        size = {"height": pico.side_of(family), "width": pico.side_of(family), "num_inference_steps": 2}
        answers.append(pipe(prompt=["a <c> in <s> style"], generator=generator, **{**told, **size})[0])
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-3, atol=1e-4)


def stock_pipeline(family):
    import diffusers

    base = opened(family)  # a processor of images and words cannot be read without torchvision
    words = {"processor": base.pipe.processor} if hasattr(base.pipe, "processor") else {}
    return getattr(diffusers, base.family.pipeline).from_pretrained(pico.folder(family), **words)


GUIDED = {
    "QwenImage21Pipeline": lambda n: {"true_cfg_scale": 2.0, "negative_prompt": [""] * n, "height": 32, "width": 32},
    "QwenImagePipeline": lambda n: {"true_cfg_scale": 2.0, "negative_prompt": [""] * n},
    "WanPipeline": lambda n: {"guidance_scale": 2.0, "num_frames": 1, "output_type": "pil"},
}
"""Pipeline -> what it is told, for n images, where guidance has another name or more is said."""


def stock(pipe, prompt, seeds, **told):
    pipe.set_progress_bar_config(disable=True)
    guided = GUIDED.get(type(pipe).__name__, lambda n: {"guidance_scale": 2.0})(len(seeds))
    size = {"height": 16, "width": 16, "num_inference_steps": 3}
    drawn = pipe(
        prompt=[prompt] * len(seeds), **{**size, **guided, **told},
        generator=[torch.Generator().manual_seed(s) for s in seeds],
    )[0]  # fmt: skip
    images = (image[0] if isinstance(image, list) else image for image in drawn)  # the frame of a video
    return [image.convert("RGB") for image in images]  # without alpha


def test_negative_prompts_are_the_stock_pipelines():
    """SDXL and SD3: with classifier-free guidance; FLUX without a guidance input: what its pipeline calls true."""
    prompt, told, schnell = "a dog", {"negative_prompt": ["sketch"] * 2}, opened("flux", guidance_embeds=False)
    words = {"max_sequence_length": 256}
    for base in (opened("sdxl"), opened("sd3")):
        ours = generate(base, prompt, negative_prompt="sketch", seed=3, count=2)
        assert_same(ours, stock(base.pipe, prompt, (3, 4), **told))
        assert not np.array_equal(values(ours), values(generate(base, prompt, seed=3, count=2)))
    ours = generate(schnell, prompt, negative_prompt="sketch", seed=3, count=2)
    assert_same(ours, stock(schnell.pipe, prompt, (3, 4), true_cfg_scale=2.0, **told, **words))


def test_guidance_of_flux_is_a_number_it_reads_or_classifier_free():
    """Distilled: the number is told to the model, and a negative prompt has no place. Else: away from no prompt."""
    dev, schnell = opened("flux"), opened("flux", guidance_embeds=False)
    assert_same(generate(dev, "a dog", guidance=6.0), stock(dev.pipe, "a dog", (0,), guidance_scale=6.0))
    assert_differ(generate(dev, "a dog", guidance=60.0), generate(dev, "a dog", guidance=1.0))
    with pytest.raises(ValueError, match="guidance-distilled and reads no negative prompt: leave it empty"):
        generate(dev, "a dog", negative_prompt="sketch")
    words = {"max_sequence_length": 256}
    told = {"true_cfg_scale": 6.0, "negative_prompt": [""], **words}
    assert_same(generate(schnell, "a dog", guidance=6.0), stock(schnell.pipe, "a dog", (0,), **told))
    assert_same(generate(schnell, "a dog", guidance=1.0), stock(schnell.pipe, "a dog", (0,), **words))


@pytest.mark.parametrize("family", pico.BASES)
def test_a_grid_is_a_picture_for_each_pair_of_strengths(family):
    base = opened(family)
    content, style = adapter(base, 1, "<c>"), adapter(base, 2, "<s>")
    done = []
    pictures = grid(
        base, "a <c> in <s> style", content, style, [0, 1.0], [0, 0.5, -0.3], seed=4,
        on_image=lambda k, total: done.append((k, total)),
    )  # fmt: skip
    assert done == [(k, 6) for k in range(1, 7)]
    for row, lc in zip(pictures, [0, 1.0], strict=True):
        for one, ls in zip(row, [0, 0.5, -0.3], strict=True):
            assert_same([one], generate(base, "a <c> in <s> style", [(content, lc), (style, ls)], seed=4))
    assert adapter_names(base.model) == []


def test_a_prompt_without_its_trigger_word_is_refused(base):
    both = merge([adapter(base, 1, "<c>"), adapter(base, 2, "<s>")], [1, 1], "stack")
    with pytest.raises(ValueError, match="'a <c> in neon style' lacks '<s>', the trigger word of the merged adapter"):
        generate(base, "a <c> in neon style", [(both, 1.0)])
    with pytest.raises(ValueError, match="lacks 'sks'"):
        generate(base, "a sksdog", [(adapter(base, 1, "sks"), 1.0)])
    with pytest.raises(ValueError, match="lacks '<s>'"):
        grid(base, "a <c>", adapter(base, 1, "<c>"), adapter(base, 2, "<s>"), [1], [1])
    with pytest.raises(ValueError, match="lacks '<s>'"):  # said before a base is looked for
        generate("/no/such/base", "a <c>", [(both, 1.0)])
    generate(base, "a dog", [(both, 0.0)], steps=1)
    generate(base, "a dog", [(both, 1.0)], steps=1, check_triggers=False)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"size": 20}, "size must be a multiple of 8 pixels .*got 20: try 16"),
        ({"size": 0}, "size must be 1 or more, got 0"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"guidance": float("nan")}, "guidance 0 or more"),
        ({"count": 0}, "count must be 1 or more"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"seed": [1, 2], "count": 3}, "3 prompts, 2 seeds"),
    ],
)
def test_settings_that_cannot_work_are_refused(base, how, message):
    with pytest.raises(ValueError, match=message):
        generate(base, "a dog", **how)


def test_an_adapter_of_another_base_is_refused_and_leaves_nothing_behind(base):
    good = adapter(base, 1)
    name = list(good.layers)[3]
    bad = Adapter(layers={**good.layers, name: Pair(A=torch.ones(2, 7), B=torch.ones(7, 2))}, header=good.header)
    with pytest.raises(ValueError, match="another base"):
        generate(base, "a dog", [(good, 1.0), (bad, 1.0)])
    assert adapter_names(base.model) == []


def test_a_base_that_was_opened_for_training_says_that_it_cannot_draw():
    base = open_base(pico.folder(), "cpu")
    base.release()
    with pytest.raises(ValueError, match="has no text_encoder, text_encoder_2, vae: open it again"):
        generate(base, "a dog")


def test_another_size_is_drawn_when_asked_for(base):
    assert generate(base, "a dog", size=32)[0].size == (32, 32)


DAMAGED = {  # part, number type -> the cure
    "model": ("unet.conv_out.bias", "float32", "smaller strengths"),
    "model in half precision": ("unet.conv_out.bias", "bfloat16", "--dtype float32"),
    "text encoder": ("text_encoder.text_model.final_layer_norm.bias", "bfloat16", "--dtype float32"),
    "vae": ("vae.decoder.conv_out.bias", "bfloat16", "VAE.*damaged"),
}


@pytest.mark.parametrize(("name", "dtype", "cure"), DAMAGED.values(), ids=DAMAGED.keys())
def test_nan_while_drawing_is_an_error_with_the_cure_and_no_black_picture(name, dtype, cure):
    base = open_base(pico.folder(), "cpu", dtype)
    part, _, weight = name.partition(".")
    state = getattr(base.pipe, part).state_dict()
    damaged = next(x for key, x in state.items() if key.endswith(weight) or key.endswith(weight.split("model.")[-1]))
    if part == "text_encoder":  # its last but one state is what is read
        damaged = next(x for key, x in state.items() if "layers.0" in key)
    damaged.fill_(float("nan"))
    adapter = random_adapter(base.pipe, "sdxl")
    for draw in (
        lambda: generate(base, "a dog", check_triggers=False),
        lambda: grid(base, "a dog", adapter, adapter, [1.0], [1.0], check_triggers=False),
    ):
        with pytest.raises(ValueError, match=cure) as error:
            draw()
        assert "NaN or infinity" in str(error.value) and "black" in str(error.value)


def test_numbers_beyond_float16_while_drawing_are_an_error_with_the_cure():
    """The case that people meet: a model that is right in float32 leaves float16's range."""
    pipe = pico.sdxl()
    pipe.unet.conv_in.weight.data *= 1e6
    base = Base(pipe.to(torch.float16), FAMILIES["sdxl"], "big", open_base(pico.folder(), "cpu").defaults)
    base.pipe.vae.to(torch.float32)
    with pytest.raises(ValueError, match="big sampled NaN or infinity.*--dtype float32"):
        generate(base, "a dog", check_triggers=False)


def test_a_prompt_that_becomes_nan_is_not_learnt_from(tmp_path):
    base = open_base(pico.folder(), "cpu")
    next(x for key, x in base.pipe.text_encoder.state_dict().items() if "layers.0" in key).fill_(float("nan"))
    Image.new("RGB", (pico.SIZE, pico.SIZE), "red").save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="text encoders of .* NaN or infinity.*float32"):
        encode_training_examples(base, [load_image(tmp_path / "x.png", pico.SIZE)], ["a dog"])


@pytest.mark.parametrize(("free", "lots"), [(3.5, [1, 3, 3, 3]), (0.5, [1] * 10), (100, [1, 9])])
def test_on_a_gpu_that_spills_over_the_first_picture_tells_how_many_are_drawn_at_once(monkeypatch, free, lots):
    """With the CPU in the GPU's place, where a picture takes a megabyte, and what stays on the device ten."""
    from qrlora import sampling_batches

    drawn = []
    monkeypatch.setattr(sampling_batches, "pages_to_host_memory", lambda device: True)
    monkeypatch.setattr(sampling_batches, "free_memory", lambda device: free * 1e6)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 11 * 10**6)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10 * 10**6)
    base, plain = opened("sdxl"), generate(opened("sdxl"), "a dog", count=10, batch_size=5)
    denoise = base.denoise
    monkeypatch.setattr(base, "denoise", lambda told, *how: drawn.append(len(told)) or denoise(told, *how))
    pictures = generate(base, "a dog", count=10)
    assert drawn == lots
    assert_same(pictures, plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adapters": "dog.safetensors"}, r"adapters is a list .*\[\('dog.safetensors', 0.8\)\]; got str"),
        ({"adapters": {"dog.safetensors": 0.5}}, "adapters is a list .*; got dict"),
        ({"seed": 2**70}, "seed must be at most 9223372036854775807, got 1180591620717411303424"),
        ({"adapters": [None]}, "an adapter or its file is needed, got None"),
        ({"adapters": [("dog.safetensors", None)]}, "strengths must be finite numbers"),
        ({"adapters": [("dog.safetensors", 10**400)]}, "strengths must be finite numbers"),
        ({"prompt": None}, "prompt must be text, or a list of one text for each image, got None"),
        ({"prompt": ["a", 5]}, "prompt must be text, or a list of one text for each image"),
        ({"count": "3"}, "count must be a whole number, got '3'"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"steps": "3"}, "steps must be a whole number, got '3'"),
        ({"steps": 10**20}, "steps must be 1000 or less, as many as .* was trained with, got 100000000000000000000"),
        ({"guidance": "3"}, "steps must be 1 or more and guidance 0 or more, got 2 and '3'"),
    ],
)
def test_an_argument_of_another_type_is_named_before_anything_is_read(base, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(base, **{"prompt": "a cat", "steps": 2, **arguments})


def test_a_grid_takes_what_generate_takes(base, tmp_path):
    content = random_adapter(base.pipe, "sdxl")
    save(content, tmp_path / "dog.safetensors")
    settings = {"steps": 1, "size": 16, "check_triggers": False}
    (row,) = grid(pico.folder(), "a cat", str(tmp_path / "dog.safetensors"), content, [0.5], [0.0], **settings)
    (expected,) = generate(base, "a cat", [(content, 0.5)], **settings)
    assert np.abs(np.asarray(row[0], int) - np.asarray(expected, int)).max() <= 1


def test_merge_says_who_reads_files():
    with pytest.raises(ValueError, match="each adapter must be of class Adapter, got 'a.safetensors'; qrlora.load"):
        merge(["a.safetensors", "b.safetensors"], [1.0, 1.0])
    with pytest.raises(ValueError, match="weights must be of class Sequence, got None"):
        merge([], None)


def test_every_function_of_an_adapter_says_who_reads_files(base, tmp_path):
    layer = torch.nn.Sequential(torch.nn.Linear(4, 4))
    calls = [lambda x: save(x, tmp_path / "b.safetensors"), lambda x: apply(layer, x, "a"), update_norms]
    for call in (*calls, lambda x: similarity(x, x)):
        with pytest.raises(ValueError, match="adapter must be of class Adapter, got 'a.safetensors'; qrlora.load"):
            call("a.safetensors")
    with pytest.raises(ValueError, match="dtype must be of class dtype, got 'bfloat16'; such as torch.bfloat16"):
        save(random_adapter(base.pipe, "sdxl"), tmp_path / "b.safetensors", dtype="bfloat16")
