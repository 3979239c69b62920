"""A network of an age when trainers did not regularise: it lacks a method."""

from torch import nn

from .lora import LoRAModule


class OldNetwork(nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.text_encoder_loras = []
        self.unet_loras = [LoRAModule("lora_unet_q", unet.q, 1.0, 2, 2)]

    def apply_to(self, text_encoder, unet, apply_text_encoder=True, apply_unet=True):
        pass


def create_network(multiplier, network_dim, network_alpha, vae, text_encoder, unet, neuron_dropout=None, **kwargs):
    return OldNetwork(unet)
