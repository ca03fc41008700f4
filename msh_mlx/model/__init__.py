"""The language model in MLX: its configuration, layers, caches and sampling; shapes in, shapes out.

State is an argument, never hidden in a layer. No files but a configuration, no sound, no text.
"""
