"""The Moshi language model in MLX: shapes in, shapes out; state is an argument, never hidden."""
