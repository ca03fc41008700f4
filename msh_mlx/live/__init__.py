"""A conversation by microphone and loudspeaker: keys, hints, recording, tracing, and the screens.

The model may run here or on a server: this room only gets its events and gives it a source and a sink of sound. It does not
know the network or the options of the command line.
"""
