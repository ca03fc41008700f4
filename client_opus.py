"""A voice conversation with Moshi on another machine; `python client_opus.py --help` tells how."""

import sys

if __name__ == "__main__":
    try:
        from msh_mlx.cli.main import main

        sys.exit(main(["client", *sys.argv[1:]]))
    except KeyboardInterrupt:  # before `main` could look after signals
        sys.exit(130)
