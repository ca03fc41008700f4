"""What fills the cells that nobody samples, slow and obvious: whole grids at once, from the description of each family.

A grid is a list of columns; a column is a list of cells: text, then the codebooks. Position p reads column p, and samples text
and own codes, which come into column p + 1. Lists of samples begin with those of position 0.
"""


def start_column(config):
    return [config.text_card] + [config.card] * config.n_q


# ---- speech to text --------------------------------------------------------------------------------------------------------


def words(tokens, delay, prefix=0.0):
    """The words of a list of tokens, each `[tokens, start, end or None]`."""
    found, current, boundary = [], [], 0.0
    for n, token in enumerate(tokens, start=1):
        if n < delay:
            continue
        if token not in (0, 3):
            current.append(token)
            continue
        if current:
            found.append([current, boundary, None])
            current = []
        if token == 0:
            boundary = (n - delay) / 12.5 - prefix
            if found and found[-1][2] is None:
                found[-1][2] = boundary
    return found


# ---- text to speech --------------------------------------------------------------------------------------------------------


def machine(entries, sampled, first, rows, ahead):
    """Run the word machine from position `first` on.

    `entries` are `(tokens, padding)`, `sampled` the text that each position samples, `rows` those of the text embedding, or
    None without a second stream. Returns the texts of the positions, the position of the end (or None), and those at which
    entries were taken.
    """
    left, queued, coming = list(entries), [], []
    remaining = forced = 2
    end, taken, out = None, [], []
    for position in range(first, len(sampled)):
        s = sampled[position]
        # 1
        if s not in (0, 3):
            s = 3
        if queued or forced > 0:
            s = 3
        elif remaining <= 0:
            s = 0
        # 2
        if s == 0 and left:
            tokens, padding = left[0]
            left = left[1:]
            taken.append(position)
            if tokens:
                queued += tokens
                with_tokens = [entry[0] for entry in left if entry[0]]
                if rows is not None and len(with_tokens) >= ahead:
                    coming += with_tokens[ahead - 1]
                remaining = 8
            else:
                s = 3
            forced = padding
        elif s == 0 and end is None:
            end = position
            s = 3 if rows is None else 0
        elif s == 0:
            s = 3
        # 3
        if s == 3:
            remaining, forced = max(0, remaining - 1), max(0, forced - 1)
            o = queued.pop(0) if queued else 3
        else:
            o = 0
        # 4
        if rows is not None:
            if o == 0:
                second = 0
                o = queued.pop(0) if queued else 3
            else:
                second = coming.pop(0) if coming else -1
            o = (second + 1) * rows + o
        out.append(o)
    return out, end, taken


def speech(config, entries, sampled, codes, *, delay_steps, ahead, prefix=None, codebooks=None):
    """The grid of a speech: given `sampled [positions]` and `codes [positions][n_q]`, as many as there may be.

    Returns the columns that the given and the null stream read at each position, the end, and the positions of entries.
    """
    delays = config.delays[1:]
    count = config.n_q if codebooks is None else codebooks
    length = len(prefix[0]) if prefix is not None else 0
    rows = config.text_card + 1 if config.demux_second_stream else None
    out, end, taken = machine(entries, sampled, length, rows, ahead)
    text = [-1] * length + out
    positions = len(sampled) if end is None else min(len(sampled), end + delay_steps + 4)

    given, null = [], []
    for column in range(positions):
        p = column - 1  # the position that samples this column
        if column == 0:
            given.append(start_column(config))
        else:
            cells = [text[p]]
            for k, delay in enumerate(delays):
                frame = p - delay - delay_steps
                if column <= delay:
                    cells.append(config.card)
                elif p < delay + delay_steps or k >= count:
                    cells.append(-1)
                elif frame < length:
                    cells.append(int(prefix[k][frame]))
                else:
                    cells.append(codes[p][k])
            given.append(cells)
        unseen = [given[-1][0] if column == 0 else -1]
        for k, delay in enumerate(delays):
            cell = given[-1][1 + k]
            unseen.append(-1 if column <= delay + length + delay_steps and cell != config.card else cell)
        null.append(unseen)
    return given, null, end, taken


# ---- conversations ---------------------------------------------------------------------------------------------------------


def prompt(config, frames):
    """The columns of a prompt's frames, `(text, own codes, user codes)`; None is a cell that the conversation fills."""
    columns = [[None] * (1 + config.n_q) for _ in range(len(frames) + max(config.delays))]
    for row, delay in enumerate(config.delays):
        for column in range(delay + 1):
            columns[column][row] = config.text_card if row == 0 else config.card
    for j, (text, own, user) in enumerate(frames):
        if j == 0:
            continue  # is lost
        for row, cell in enumerate([text, *own, *user]):
            columns[j + config.delays[row]][row] = cell
    return columns


def persona_frames(config, voice, text, silence, sine):
    """The frames of a voice `[own][frames]` and of a text's tokens."""
    silent = (config.existing_text_padding_id, silence, sine)
    spoken = [(config.existing_text_padding_id, list(codes), sine) for codes in zip(*voice, strict=True)]
    return spoken + [silent] * 6 + [(token, silence, sine) for token in text] + [silent] * 6


def conversation(config, first, user, text, codes):
    """The grid of a conversation of `len(user)` frames after the columns `first`, whose length is P + the largest delay.

    User frame f of delay d is in column P + f + d. Position p gives `text[p]` and `codes[p]` to column p + 1.
    """
    length = len(first) - max(config.delays)
    grid = []
    for column in range(length + len(user)):
        cells = [None] * (1 + config.n_q) if column >= len(first) else list(first[column])
        for row, delay in enumerate(config.delays):
            if cells[row] is not None:
                continue
            if row == 0:
                cells[row] = text[column - 1]
            elif row <= config.dep_q:
                cells[row] = codes[column - 1][row - 1]
            else:
                cells[row] = user[column - length - delay][row - 1 - config.dep_q]
        grid.append(cells)
    return grid
