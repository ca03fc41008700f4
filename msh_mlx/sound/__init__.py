"""Sound: microphones and loudspeakers, echo, channels, and sound files.

Sound that leaves this room is mono float32 at 24 kHz. Nothing here knows of models.
"""
