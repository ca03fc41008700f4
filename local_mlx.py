"""A voice conversation with Moshi on this machine; `python local_mlx.py --help` tells how."""

import sys

if __name__ == "__main__":
    try:
        from msh_mlx.cli.main import main

        sys.exit(main())
    except KeyboardInterrupt:  # before `main` could look after signals
        sys.exit(130)
