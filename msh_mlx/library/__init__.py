"""The models: which exist, which are on disk, which one suits this machine, and how to fetch them.

This room reads headers and configurations of models. It does not run any.
"""
