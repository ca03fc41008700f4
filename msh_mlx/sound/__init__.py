"""Sound: microphones and loudspeakers, echo, channels, and sound files.

Everything it gives is mono float32 at 24 kHz. It knows nothing of models.
"""
