"""What `msh-mlx doctor` looks at: everything that may keep a conversation from working, each with what to do about it.

`checks` and `sound` touch the machine. `judgements` touch nothing: facts in, a finding out. `examine` makes the checks, each in
the time that it has.

Modules that may be missing or broken are imported by the checks that need them, so that one of them ends no other.
"""
