"""Scores of images against plain arithmetic, true images, and networks called by hand."""

import math

import pytest
import torch
from PIL import Image

from qrlora import evaluation
from qrlora.world.drawings import held_out_contents, known_contents
from qrlora.world.ground_truth import true_image, true_images
from qrlora.world.styles import HELD_OUT_STYLES


def test_ssim_is_the_papers_formula_window_by_window():
    """Wang et al. 2004, eq. 13, summed in plain Python."""
    first, second = torch.rand(2, 1, 1, 12, 13, generator=torch.Generator().manual_seed(0)).double()
    weights = [[math.exp(-((u - 5) ** 2 + (v - 5) ** 2) / 4.5) for v in range(11)] for u in range(11)]
    total = sum(map(sum, weights))
    wanted = []
    for top in range(2):
        for left in range(3):

            def mean(f, top=top, left=left):
                cells = ((u, v) for u in range(11) for v in range(11))
                return sum(weights[u][v] * f(top + u, left + v) for u, v in cells) / total

            def x(u, v):
                return float(first[0, 0, u, v])

            def y(u, v):
                return float(second[0, 0, u, v])

            a, b = mean(x), mean(y)
            var_a, var_b = mean(lambda u, v: x(u, v) ** 2) - a * a, mean(lambda u, v: y(u, v) ** 2) - b * b
            both = mean(lambda u, v: x(u, v) * y(u, v)) - a * b
            upper = (2 * a * b + 1e-4) * (2 * both + 9e-4)
            wanted.append(upper / ((a * a + b * b + 1e-4) * (var_a + var_b + 9e-4)))
    assert float(evaluation.ssim(first, second)) == pytest.approx(sum(wanted) / 6, abs=1e-9)
    assert float(evaluation.ssim(first, first)) == pytest.approx(1)
    assert float(evaluation.ssim(first, second)) == pytest.approx(float(evaluation.ssim(second, first)))
    with pytest.raises(ValueError, match="11 pixels or more"):
        evaluation.ssim(first[..., :10], second[..., :10])


@pytest.mark.parametrize("style", HELD_OUT_STYLES)
def test_the_true_picture_has_every_score_and_the_inputs_leak(style):
    """The truth; the style image, which shows the other content; the content image, which is plain."""
    things, others = held_out_contents()[:8], known_contents()[:8]
    rows = [[], [], []]
    for thing, other in zip(things, others, strict=True):
        truth = true_images([thing], style)
        pictures = torch.cat([truth, true_images([other], style), true_images([thing])])
        scored = evaluation.ground_truth_scores(pictures, truth[0], thing, style, other, "plain")
        for kind, row in zip(rows, scored, strict=True):
            kind.append(row)
    mean = [{name: sum(row[name] for row in kind) / 8 for name in kind[0]} for kind in rows]
    right, of_style, of_content = mean
    assert right["content_likeness"] == pytest.approx(1) and right["ssim"] == pytest.approx(1)
    assert right["both"] >= 7 / 8 and right["leaked_content"] < 0.05 and right["leaked_style"] < 0.05
    assert of_style["style"] >= 7 / 8 and of_style["content"] <= 1 / 8 and of_style["leaked_content"] > 0.5
    assert of_content["content"] >= 7 / 8 and of_content["style"] <= 1 / 8 and of_content["leaked_style"] > 0.5
    assert max(of_style["content_likeness"], of_content["style_likeness"]) < 0.9


SMALL = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Folders of a pico ViT as DINO's and a pico CLIP vision network, as save_pretrained writes them."""
    import transformers

    folder = tmp_path_factory.mktemp("networks")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = transformers.ViTModel(transformers.ViTConfig(**SMALL, patch_size=8), add_pooling_layer=False)
        config = transformers.CLIPVisionConfig(**SMALL, patch_size=16, projection_dim=6)
        clip = transformers.CLIPVisionModelWithProjection(config)
    vit.save_pretrained(folder / "dino")
    clip.save_pretrained(folder / "clip")
    return {"dino": (folder / "dino", vit.eval()), "clip": (folder / "clip", clip.eval())}


@pytest.mark.parametrize("kind", ["dino", "clip"])
def test_features_are_the_class_token_or_the_projection_of_the_fitted_picture(networks, kind):
    folder, model = networks[kind]
    encoder = evaluation.open_encoder(str(folder), "cpu")
    pictures = [true_image("owl", "neon"), true_image("robot", "plain").resize((90, 70))]
    assert encoder.likeness(pictures, pictures[0])[0] == pytest.approx(1, abs=1e-5)
    middle = 37 if kind == "dino" else 32
    square = pictures[0].resize((middle, middle), Image.Resampling.BICUBIC)
    edge = (middle - 32) // 2
    pixels = torch.tensor(list(square.crop((edge, edge, edge + 32, edge + 32)).tobytes())).view(32, 32, 3) / 255
    mean, deviation = map(torch.tensor, evaluation.CLIP if kind == "clip" else evaluation.IMAGENET)
    with torch.no_grad():
        answer = model(((pixels - mean) / deviation).permute(2, 0, 1)[None])
    vector = answer.image_embeds[0] if kind == "clip" else answer.last_hidden_state[0, 0]
    torch.testing.assert_close(encoder.features(pictures)[0], vector / vector.norm(), rtol=0, atol=1e-5)


class Tower(torch.nn.Module):
    """CLIP's vision tower as its first code wrote it, from the paper's description, with CSD's two heads."""

    def __init__(self, width=128, layers=2, patch=8, side=32, heads=2, features=6):
        super().__init__()
        from torch import nn

        self.backbone = nn.Module()
        self.backbone.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.backbone.class_embedding = nn.Parameter(torch.randn(width))
        self.backbone.positional_embedding = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width))
        self.backbone.ln_pre, self.backbone.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.backbone.transformer = nn.Module()
        self.backbone.transformer.resblocks = nn.ModuleList(self.block(nn, width, heads) for _ in range(layers))
        self.last_layer_style = nn.Parameter(torch.randn(width, features))
        self.last_layer_content = nn.Parameter(torch.randn(width, features))

    def block(self, nn, width, heads):
        block = nn.Module()
        block.attn, block.ln_1, block.ln_2 = nn.MultiheadAttention(width, heads), *(nn.LayerNorm(width) for _ in "12")
        block.mlp = nn.Module()
        block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        return block

    def forward(self, pixels):
        tower = self.backbone
        patches = tower.conv1(pixels).flatten(2).permute(2, 0, 1)
        x = torch.cat([tower.class_embedding.expand(1, len(pixels), -1), patches])
        x = tower.ln_pre(x + tower.positional_embedding[:, None])
        for block in tower.transformer.resblocks:
            inside = block.ln_1(x)
            x = x + block.attn(inside, inside, inside, need_weights=False)[0]
            inside = block.mlp.c_fc(block.ln_2(x))
            x = x + block.mlp.c_proj(inside * (1.702 * inside).sigmoid())
        return tower.ln_post(x[0]) @ self.last_layer_style


def test_csd_is_clips_tower_with_the_head_of_style(tmp_path):
    """Against the tower written out; by a folder with its file; a lacking tensor is one clear line."""
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tower().eval()
    for p in model.parameters():  # norms and biases, too, must be where they belong
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    encoder = evaluation.open_encoder(str(tmp_path), "cpu")
    picture = true_image("owl", "neon").resize((32, 32))
    pixels = torch.tensor(list(picture.tobytes())).view(32, 32, 3) / 255
    mean, deviation = map(torch.tensor, evaluation.CLIP)
    with torch.no_grad():
        wanted = model(((pixels - mean) / deviation).permute(2, 0, 1)[None])[0]
    torch.testing.assert_close(encoder.features([picture])[0], wanted / wanted.norm(), rtol=0, atol=1e-5)
    assert "middle 32 x 32, CLIP mean" in str(encoder) and "@sha256:" in str(encoder)
    save_file({name: x for name, x in state.items() if "ln_pre" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not the weights of CSD: .*pre_layrnorm") as caught:
        evaluation.open_encoder(str(tmp_path), "cpu")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(OSError, match="vision network 'yuxi-liu-wired/CSD'"):
        evaluation.open_encoder("csd-vit-l", "cpu")


def test_what_was_measured_with_is_said_and_other_weights_are_another_revision(networks, tmp_path):
    import transformers

    folder, _ = networks["dino"]
    told = str(evaluation.open_encoder(str(folder), "cpu"))
    assert "@sha256:" in told and "shorter side 37 bicubic, middle 32 x 32, ImageNet" in told
    other = transformers.ViTModel(transformers.ViTConfig(**SMALL, patch_size=8), add_pooling_layer=False)
    other.save_pretrained(tmp_path / "dino")
    revisions = {evaluation.open_encoder(str(place), "cpu").revision for place in (folder, folder, tmp_path / "dino")}
    assert len(revisions) == 2


def test_a_network_that_cannot_be_had_is_one_clear_line(tmp_path):
    with pytest.raises(OSError, match="vision network 'facebook/dino-vits16'") as caught:
        evaluation.open_encoder("dino-vits16", "cpu")
    assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is a bert, not one of clip"):
        evaluation.open_encoder(str(tmp_path), "cpu")
