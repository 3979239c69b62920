"""Adapter files: one safetensors each, which ordinary tools load as a LoRA.

Letters: o outputs, i inputs, r rank, A (r, i), B (o, r).

Everything of ours lives in the header; there are no extra tensors, and no alpha keys but where kohya's code demands
them (a missing alpha means scale 1 everywhere; present ones break some readers). Two contents: "full" (A and B) and
"compact" (the trained factor alone, about half; it needs the frozen directions, found in the basis cache by digest, and
no other tool mistakes it for a LoRA).
"""

from .load_adapter import count_text_encoder_keys, load, read_header
from .save_adapter import save, size_in_bytes
from .written_metadata import CONTENTS, layout_of

__all__ = [
    "CONTENTS",
    "count_text_encoder_keys",
    "layout_of",
    "load",
    "read_header",
    "save",
    "size_in_bytes",
]
