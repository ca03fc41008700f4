"""The machine and its system: memory, signals, threads, folders, files, standard streams, the log.

Nothing here knows what the program is for.
"""
