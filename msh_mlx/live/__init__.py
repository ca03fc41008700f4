"""A conversation by microphone and loudspeaker: keys, hints, recording, tracing, and the screens.

The model may run here or on a server: this room sees its events and hands it a source and a sink of sound. It knows nothing
of the network, and nothing of options.
"""
