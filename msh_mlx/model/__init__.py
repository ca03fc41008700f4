"""The language model in MLX: its configuration, layers, key/value caches and sampling.

Functions take and return arrays. State is an argument, never hidden in a layer. The only file read here is a configuration.
Nothing here knows of sound or text.
"""
