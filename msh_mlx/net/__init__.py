"""The network: messages, addresses, Opus, certificates, the server, and the client's side of a conversation.

This room uses conversations. It does not know the screen, the keys, the sound devices or the options of the command line.
"""
