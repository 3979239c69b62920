"""The method inside the trainers that people already run: kohya's, whatever injects LoRAs with PEFT, ai-toolkit."""
