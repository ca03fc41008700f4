"""The wire: messages, addresses, Opus, certificates, the server, and the client's side of a conversation.

It uses conversations; it knows nothing of the screen, the keys or the sound devices, nor of options.
"""
