"""The commands: options, output and exit codes.

Each command is a module with a function `run`, which takes the arguments behind the command's name and returns the exit code.
What a program in Python could use, too, belongs in the rooms below. Nothing imports this room.
"""
