"""The commands: what is typed, what is printed, and exit codes.

Each command is a module with `run`, which takes the arguments behind the name and returns the exit code. No behaviour lives
here that a program in Python would want: that belongs to the rooms below. Nothing imports this room.
"""
