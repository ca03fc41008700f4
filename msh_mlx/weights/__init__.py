"""Files of weights: reading, checking, quantizing, converting, adapters.

A model comes out of this room; where its file came from is the library's.
"""
