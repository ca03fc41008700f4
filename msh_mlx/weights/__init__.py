"""Files of weights: reading, checking, quantizing, converting, adapters.

This room turns a file into a model. Where the file comes from is the library's business.
"""
