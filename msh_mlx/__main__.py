"""`python -m msh_mlx`: the program `msh-mlx`."""

import sys

if __name__ == "__main__":
    try:
        from .cli.main import main

        sys.exit(main())
    except KeyboardInterrupt:  # before `main` handles signals
        sys.exit(130)
