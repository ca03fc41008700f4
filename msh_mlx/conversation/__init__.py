"""A conversation, frame by frame, on one thread or on three; the caller brings the sound.

Model, codec and tokenizer come together here. This room opens no device, no network connection and no terminal.
"""
