"""The commands of `msh-mlx`: each module has `run`, which takes the arguments behind the name and returns the exit code."""
