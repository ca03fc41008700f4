"""The screens of a live conversation: in a terminal, as plain lines, or as JSON for programs."""
