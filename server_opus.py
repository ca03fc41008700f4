"""Serves conversations with Moshi to browsers and clients; `python server_opus.py --help` tells how."""

import sys

if __name__ == "__main__":
    try:
        from msh_mlx.cli.main import main

        sys.exit(main(["serve", *sys.argv[1:]]))
    except KeyboardInterrupt:  # before `main` could look after signals
        sys.exit(130)
