"""The reward model, tiny backbones, and the modules that weight samples."""
