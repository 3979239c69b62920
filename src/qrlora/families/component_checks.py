"""Check a base's components: those that differ from a family's own are refused in one line where our code would be
wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .family import Family, TokenLimits
from .pipeline_steps import latent_channels


def check_pipeline_components(pipe: Any, family: Family) -> None:
    """Raises ValueError: a base whose components take or return something else than our code expects, see below."""
    check_model_config(getattr(pipe, family.component).config, family)
    check_vae_channels(pipe, family, latent_channels(pipe.vae.config))
    check_text_widths(pipe, family)
    check_vocabulary(pipe, family)


def check_model_config(config: Mapping[str, Any], family: Family) -> None:
    """Raises ValueError: the component that is trained takes an input that this family's do not, naming it."""
    for name, plain in family.required_config.items():
        if config.get(name, plain) != plain:
            what = f"{name}={config[name]!r:.80} in its configuration"
            reads = f"its {family.component} reads more than a {family.name} base's does: {what}"
            raise ValueError(f"{reads}; {family.served_models}")


def check_vae_channels(pipe: Any, family: Family, latent_channels: int) -> None:
    """Check the components' channels: the model takes the VAE's latents, and predicts as many channels.

    Raises: ValueError: it was made for another input beside them, or predicts more (a learned variance).
    """
    config, inputs = getattr(pipe, family.component).config, family.input_shapes(pipe, 2, TokenLimits())["latents"][1]
    outputs = config.get("out_channels") or config.in_channels
    if outputs != inputs:  # counted in patches of 2 x 2, as the inputs
        outputs = outputs * inputs // config.in_channels
    if inputs != latent_channels:
        made = "it was made for an image or mask beside the words (inpainting, editing, depth), which qrlora has not"
        reads = f"its {family.component} reads {inputs} channels, its VAE makes {latent_channels}"
        raise ValueError(f"{reads}: {made}; {family.served_models}")
    if outputs != latent_channels:
        raise ValueError(f"its {family.component} predicts {outputs} channels, its VAE reads {latent_channels}")


def check_text_widths(pipe: Any, family: Family) -> None:
    """Raises ValueError: a component that is a text encoder makes vectors of another size than the model reads."""
    wanted = family.input_shapes(pipe, 2, TokenLimits())
    for name, made in family.text_widths(pipe).items():
        if made != wanted[name][-1]:
            what = f"its text encoders make {made} numbers of a {'word' if name == 'text' else 'prompt'}"
            reads = f"its {family.component} reads {wanted[name][-1]}: they are of another base"
            raise ValueError(f"{what}, {reads}; {family.served_models}")


def check_vocabulary(pipe: Any, family: Family) -> None:
    """Check the components' vocabularies: every word that a tokenizer may give has its row in the text encoder, and
    CLIP's tokenizers agree.

    Raises: ValueError: a tokenizer that knows or takes more words than its text encoder, or takes fewer than another.
    """
    lengths: dict[str, int] = {}
    for component in family.text_encoders:
        name, encoder = family.tokenizer_of(component), getattr(pipe, component, None)
        tokenizer = getattr(pipe, name, None)
        if encoder is None or tokenizer is None:
            continue
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor of images and words
        config = encoder.config.to_dict()
        check_token_limit(name, tokenizer.model_max_length, component, config)
        if learned_positions(config) is not None:
            lengths[name] = tokenizer.model_max_length
        known, rows = max(tokenizer.get_vocab().values()) + 1, encoder.get_input_embeddings().num_embeddings
        if known > rows:
            hint = "save the text encoder with the words that were added, or the tokenizer without them"
            raise ValueError(f"its {name} knows {known} words and parts of words, its {component} {rows}: {hint}")
    if len({*lengths.values()}) > 1:
        found = " and ".join(f"its {name} {tokens}" for name, tokens in lengths.items())
        raise ValueError(f"tokens that are taken must be equally many, got {found}: set model_max_length alike")


def learned_positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that a text encoder has learned positions for (CLIP); None: relative ones (T5) or rotary ones (Qwen)."""
    rotary = {"rope_parameters", "rope_theta"} & config.keys()
    return None if rotary else config.get("max_position_embeddings")


def check_token_limit(tokenizer: str, tokens: float, encoder: str, config: Mapping[str, Any]) -> None:
    """Raises ValueError: a tokenizer takes no whole number of tokens, or more than its text encoder has learned
    positions; the tokenizer of one that has none may have no end."""
    counted = isinstance(tokens, int) and not isinstance(tokens, bool) or isinstance(tokens, float) and tokens > 1e9
    if not counted or tokens < 1:
        raise ValueError(f"its {tokenizer} must take a number of tokens, got model_max_length={tokens!r:.80}")
    positions = learned_positions(config)
    if positions is not None and tokens > positions:
        hint = f"set model_max_length in its tokenizer_config.json to {positions}"
        raise ValueError(f"its {tokenizer} takes {tokens:g} tokens, its {encoder} {positions}: {hint}")
