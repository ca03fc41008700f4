"""Warming up: a model on trial is measured at the length of a full window, and kept, replaced, or refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from msh_mlx import MshError, Session
from msh_mlx.conversation.load import load_session, on_trial
from msh_mlx.conversation.warmup import warm
from msh_mlx.events import Notice
from msh_mlx.library.files import find_demo
from msh_mlx.library.suited import Machine, Selection, load_library, suitable, triable

LOAD = partial(load_session, find_demo(), voice={"temperature": 0}, text={"temperature": 0}, seed=0)
ENTRIES = load_library()
CHOSEN = Selection(ENTRIES["moshiko-q4"], [], ENTRIES, trial=True)


def loaded(progress):
    return LOAD(progress=progress)


def session(judge):
    return warm(loaded, None, judge)(lambda _: None, lambda: None)


def heard(session: Session) -> list[str]:
    frames = np.random.default_rng(0).uniform(-0.1, 0.1, (12, session.frame_size)).astype(np.float32)
    return [str(session.push(frame).pcm.tobytes()) for frame in frames]


def test_a_trial_leaves_the_session_as_new():
    judged = []
    tried = session(lambda longest: judged.append(longest))
    assert len(judged) == 1
    assert 0 < judged[0] < 10
    assert heard(tried) == heard(LOAD())


def test_a_full_window_takes_all_of_its_keys_and_values(engine):
    one = LOAD(engine=engine)
    gen, lm = one._gen, one._gen.lm
    one.fill_window()
    frame = one.push(np.zeros(one.frame_size, np.float32))
    assert np.isfinite(frame.pcm).all()
    assert gen.kv_bytes == lm.kv_bytes(lm.config.context)
    assert gen._position == lm.config.context + 1
    one.reset()
    assert heard(one) == heard(LOAD(engine=engine))


def test_a_model_that_is_fast_enough_is_kept():
    said: list[Notice] = []
    assert on_trial(CHOSEN, None, said.append)(0.079) is None
    assert not said


def test_a_model_that_is_too_slow_is_refused_with_what_was_measured():
    with pytest.raises(MshError, match=r"moshiko-q4 is too slow here: .* 95 ms") as error:
        on_trial(CHOSEN, None, lambda _: None)(0.095)
    assert "--context" in error.value.advice


def test_the_demo_model_takes_its_place_if_it_may():
    said: list[Notice] = []
    lighter = on_trial(CHOSEN, LOAD, said.append)(0.095)
    assert lighter is not None
    assert isinstance(lighter(lambda _: None), Session)
    assert "taking the demo model" in said[0].message


def test_only_machines_that_may_be_fast_enough_try():
    entries = {name: entry for name, entry in ENTRIES.items() if entry.use == "conversation"}
    need = entries["moshiko-q4"].step_bytes
    slow, middling, fast = (Machine(64 << 30, need / seconds) for seconds in (0.2, 0.08, 0.03))
    assert not triable(entries, slow)
    assert not suitable(entries, middling)
    assert triable(entries, middling)[0].bits == 4
    assert suitable(entries, fast)
    assert not triable(entries, Machine(4 << 30, need / 0.03))
