"""One conversation, frame by frame, on one thread or three, with sound that is given to it.

Model, codec and tokenizer come together here. No device, no network, no terminal.
"""
