"""Files of weights: reading, checking, quantizing, converting, adapters.

This room turns a file into a model. The library finds or fetches the file.
"""
