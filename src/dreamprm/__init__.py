"""DreamPRM."""
