"""Small base models for qrlora, which finds them here: a folder of diffusers for each, by its name."""
