"""`--network_module qrlora.networks.NAME` of kohya's trainers: their own `networks.NAME`, with frozen directions.

There is a module here for every module that the trainer has: `import qrlora.networks.lora_flux` imports the trainer's
`networks.lora_flux` and hands on what it holds, but for the functions that make networks.
"""

from .import_hook import TrainerModules

__all__ = ["TrainerModules"]
