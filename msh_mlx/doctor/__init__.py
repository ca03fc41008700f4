"""The checks of `msh-mlx doctor`: everything that may keep a conversation from working, and what to do about it.

`checks` and `sound` look at the machine. `judgements` make a finding of the facts, and do not touch the machine. `examine`
runs each check within its time limit.

Modules that may be missing or broken are imported by the checks that need them. So a broken one does not stop other checks.
"""
