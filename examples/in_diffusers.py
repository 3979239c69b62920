"""An adapter file in stock diffusers, without qrlora: it is an ordinary LoRA.

python examples/in_diffusers.py stabilityai/stable-diffusion-xl-base-1.0 merged.safetensors
"""

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="the base model: a hub name or a folder")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--prompt", default="a <c> in <s> style")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path("picture.png"))
    wanted = parser.parse_args()

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = StableDiffusionXLPipeline.from_pretrained(wanted.base, torch_dtype=dtype).to(device)
    pipe.load_lora_weights(wanted.adapter, adapter_name="merged")
    pipe.set_adapters(["merged"], [0.9])  # a strength, as for any LoRA
    generator = torch.Generator().manual_seed(0)
    picture = pipe(wanted.prompt, num_inference_steps=wanted.steps, generator=generator).images[0]
    picture.save(wanted.output)
    print(f"{len(pipe.get_list_adapters()['unet'])} adapter on the UNet: {wanted.output}")


if __name__ == "__main__":
    main()
