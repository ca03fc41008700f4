"""What a live conversation shows: in a terminal, as plain lines, or as JSON for programs."""
