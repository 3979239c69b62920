"""A network of another kind, in the same shape: its modules have no lora_down."""

from torch import nn


class LoHaModule(nn.Module):
    def __init__(self, lora_name, org_module):
        super().__init__()
        self.lora_name, self.org_module = lora_name, org_module


class LoHaNetwork(nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.text_encoder_loras = []
        self.unet_loras = [LoHaModule(name, x) for name, x in unet.named_modules() if isinstance(x, nn.Linear)]

    def apply_to(self, text_encoder, unet, apply_text_encoder=True, apply_unet=True):
        pass

    def apply_max_norm_regularization(self, max_norm_value, device):
        pass


def create_network(multiplier, network_dim, network_alpha, vae, text_encoder, unet, neuron_dropout=None, **kwargs):
    return LoHaNetwork(unet)
