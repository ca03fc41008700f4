"""The engine on MLX, for GPUs: the model as modules of `mlx.nn`, and its steps as functions that MLX compiles."""
