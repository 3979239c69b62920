"""A network of the shape that kohya's trainers expect: what they call, in their order, and what a file holds.

Written for these tests from a description of the interface; no trainer's code. Linear layers, convolutions and fused
layers that are split; ranks by name; dropout; text encoders; weights in fp8.
"""

import torch
from safetensors.torch import load_file, save_file
from torch import nn

SETTINGS = ("conv_dim", "ranks", "split", "dropout", "loraplus_lr_ratio")


class LoRAModule(nn.Module):
    def __init__(self, lora_name, org_module, multiplier, lora_dim, alpha, dropout=None, split_dims=None):
        super().__init__()
        self.lora_name, self.multiplier = lora_name, multiplier
        self.dropout, self.split_dims, self.scale = dropout, split_dims, alpha / lora_dim
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        o, i = org_module.weight.shape[:2]
        if isinstance(org_module, nn.Conv2d):
            kernel = (org_module.kernel_size, org_module.stride, org_module.padding)
            self.lora_down = nn.Conv2d(i, lora_dim, *kernel, bias=False)
            self.lora_up = nn.Conv2d(lora_dim, o, 1, bias=False)
        elif split_dims:
            self.lora_down = nn.ModuleList(nn.Linear(i, lora_dim, bias=False) for _ in split_dims)
            self.lora_up = nn.ModuleList(nn.Linear(lora_dim, n, bias=False) for n in split_dims)
        else:
            self.lora_down, self.lora_up = nn.Linear(i, lora_dim, bias=False), nn.Linear(lora_dim, o, bias=False)
        for name, weight in self.named_parameters():
            nn.init.zeros_(weight) if "up" in name else nn.init.kaiming_uniform_(weight)
        self.org_module = org_module  # a child, until apply_to

    def apply_to(self):
        self.org_forward, self.org_module.forward = self.org_module.forward, self.forward
        del self.org_module

    def forward(self, x):
        if self.split_dims:
            update = torch.cat([up(down(x)) for down, up in zip(self.lora_down, self.lora_up, strict=True)], -1)
        else:
            update = self.lora_up(nn.functional.dropout(self.lora_down(x), self.dropout or 0.0, self.training))
        return self.org_forward(x) + update * self.multiplier * self.scale


class LoRANetwork(nn.Module):
    def __init__(self, text_encoder, unet, multiplier, lora_dim, alpha, **settings):
        super().__init__()
        self.loraplus_lr_ratio = float(settings.get("loraplus_lr_ratio") or 0)
        ranks = dict(pair.split(":") for pair in (settings.get("ranks") or "").split(",") if pair)
        split = [int(n) for n in (settings.get("split") or "").split(",") if n]

        def modules(prefix, root):
            for name, module in root.named_modules():
                wide = type(module).__name__ == "Conv2d"
                if type(module).__name__ != "Linear" and not (wide and settings.get("conv_dim")):
                    continue
                rank = int(settings["conv_dim"] if wide else ranks.get(name, lora_dim))
                parts = split if sum(split) == len(module.weight) and name == "qkv" else None
                flat = f"{prefix}_{name.replace('.', '_')}"
                yield LoRAModule(flat, module, multiplier, rank, alpha or rank, settings.get("dropout"), parts)

        self.text_encoder_loras = list(modules("lora_te", text_encoder)) if text_encoder is not None else []
        self.unet_loras = list(modules("lora_unet", unet))

    def apply_to(self, text_encoder, unet, apply_text_encoder=True, apply_unet=True):
        self.text_encoder_loras = self.text_encoder_loras if apply_text_encoder else []
        self.unet_loras = self.unet_loras if apply_unet else []
        for lora in self.text_encoder_loras + self.unet_loras:
            lora.apply_to()
            self.add_module(lora.lora_name, lora)

    def load_weights(self, file):
        return self.load_state_dict(load_file(file), strict=False)

    def enable_gradient_checkpointing(self):
        pass

    def prepare_optimizer_params(self, text_encoder_lr, unet_lr, default_lr):
        self.requires_grad_(True)
        named = [(name, x) for lora in self.text_encoder_loras + self.unet_loras for name, x in lora.named_parameters()]
        if not self.loraplus_lr_ratio:
            return [{"params": [x for _, x in named], "lr": default_lr}], ["all"]
        plain = {"params": [x for name, x in named if "lora_up" not in name], "lr": default_lr}
        plus = {"params": [x for name, x in named if "lora_up" in name], "lr": default_lr * self.loraplus_lr_ratio}
        return [group for group in (plain, plus) if group["params"]], ["plain", "plus"]

    def prepare_grad_etc(self, text_encoder, unet):
        self.requires_grad_(True)

    def on_epoch_start(self, text_encoder, unet):
        self.train()

    def get_trainable_params(self):
        return self.parameters()

    def apply_max_norm_regularization(self, max_norm_value, device):
        state, scaled, norms = self.state_dict(), 0, []
        for down in [key for key in state if "lora_down" in key]:
            up, alpha = down.replace("lora_down", "lora_up"), f"{down.split('.')[0]}.alpha"
            update = state[up].flatten(1) @ state[down].flatten(1) * state[alpha] / len(state[down])
            norm = update.norm().clamp(min=max_norm_value / 2)
            ratio = norm.clamp(max=max_norm_value) / norm
            if ratio != 1:
                scaled += 1
                state[up] *= ratio**0.5
                state[down] *= ratio**0.5
            norms.append(float(update.norm() * ratio))
        return scaled, sum(norms) / len(norms), max(norms)

    def save_weights(self, file, dtype, metadata):
        save_file({key: x.detach().cpu().to(dtype) for key, x in self.state_dict().items()}, file, metadata)

    def merge_to(self, text_encoder, unet, weights, dtype, device):
        for lora in self.unet_loras:
            down, up = (weights[f"{lora.lora_name}.lora_{side}.weight"] for side in ("down", "up"))
            update = (up.flatten(1) @ down.flatten(1)).view(lora.org_module.weight.shape)
            lora.org_module.weight.data += lora.multiplier * lora.scale * update


def create_network(multiplier, network_dim, network_alpha, vae, text_encoder, unet, neuron_dropout=None, **kwargs):
    unknown = kwargs.keys() - {*SETTINGS}
    assert not unknown, unknown
    settings = {"dropout": neuron_dropout, **kwargs}
    return LoRANetwork(text_encoder, unet, multiplier, network_dim, network_alpha, **settings)


def create_network_from_weights(multiplier, file, vae, text_encoder, unet, weights_sd=None, for_inference=False, **kw):
    weights = weights_sd or load_file(file)
    ranks = {key.split(".")[0]: len(x) for key, x in weights.items() if "lora_down" in key}
    network = LoRANetwork(None, unet, multiplier, max(ranks.values()), None)
    network.unet_loras = [lora for lora in network.unet_loras if lora.lora_name in ranks]
    return network, weights
