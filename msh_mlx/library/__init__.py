"""Which models there are, which are on disk, fetching them, and which one suits this machine.

It reads headers and configurations of models, and runs none.
"""
