"""The machine and its system: memory, signals, threads, folders, files, standard streams, the log.

Nothing here knows of models, sound or conversations.
"""
