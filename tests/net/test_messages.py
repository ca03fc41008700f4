"""The wire protocol: a recorded conversation, every message there and back, any split, any bytes."""

import itertools
import json
import random
import struct
import time
import tracemalloc
from urllib.parse import parse_qsl

import ogg
import published
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msh_mlx.errors import ProtocolError
from msh_mlx.net import parameters
from msh_mlx.net.messages import Audio, ColoredText, Control, Error, Handshake, MetaData, Ping, Text, decode, encode
from msh_mlx.net.parameters import BUILD_KEYS, ChatParameters, unknown_parameters
from msh_mlx.sound import ogg as ogg_pages
from msh_mlx.sound.ogg import OggSplitter, PageKind, packet_samples

PAGE, SERVER = 0, 1
MAX_PAGE = 27 + 255 + 255 * 255  # bytes: a header, 255 lengths of segments, 255 segments (RFC 3533, section 6)


@pytest.fixture(scope="module")
def recorded():
    return published.recorded()


def audio_of(recorded, direction):
    """The bytes of one side's audio messages, one by one."""
    return [decode(data).data for side, _, data in recorded if side == direction and data[0] == 1]


def split(data, cuts):
    """Data in pieces, cut at these positions."""
    edges = [0, *sorted(cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def feed(pieces, splitter=None):
    splitter = splitter or OggSplitter()
    return [page for piece in pieces for page in splitter.feed(piece)]


# The recorded conversation


def test_the_recorded_conversation_is_read_in_full_and_written_again_as_it_was(recorded):
    messages = [(side, decode(data)) for side, _, data in recorded]
    assert sum(side == PAGE and isinstance(message, Audio) for side, message in messages) == 595
    assert sum(side == SERVER and isinstance(message, Audio) for side, message in messages) == 295
    others = [(side, message) for side, message in messages if not isinstance(message, Audio)]
    texts = [" four", " one", " three", " eight", " nine", " zero"]
    assert others == [(SERVER, Handshake()), *((SERVER, Text(text)) for text in texts)]
    for _, _, data in recorded:
        if data != b"\0":  # the server sends the type only, and we nine bytes
            assert encode(decode(data)) == data
    assert encode(Handshake()) == bytes(9)


@pytest.mark.parametrize(("side", "packets"), [(PAGE, 2), (SERVER, 1)])
def test_the_recorded_audio_is_as_long_as_its_granules_say_whatever_the_split(recorded, side, packets):
    pieces = audio_of(recorded, side)
    pages = feed(pieces)
    head, tags, *rest = pages
    assert (head.kind, tags.kind, {page.kind for page in rest}) == (PageKind.HEAD, PageKind.TAGS, {PageKind.AUDIO})
    assert b"".join(page.data for page in pages) == b"".join(pieces)
    assert [page.sequence for page in pages] == list(range(len(pages)))
    assert {page.serial for page in pages} == {head.serial}
    position = 0
    for page in rest:  # both sides count at 48 kHz, from 0, one page 40 ms
        assert page.durations == (1920 // packets,) * packets
        position += page.samples
        assert (page.granule, page.faults) == (position, 0)
    assert position == 1920 * (593 if side == PAGE else len(rest))
    stream = b"".join(pieces)
    assert feed([stream]) == pages
    assert feed([stream[i : i + 1] for i in range(len(stream))]) == pages
    for seed in range(10):
        rng = random.Random(seed)
        assert feed(split(stream, [rng.randrange(len(stream)) for _ in range(rng.randrange(1, 3000))])) == pages


# Messages

TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
NUMBERS = st.integers(0, (1 << 32) - 1)
MESSAGES = st.one_of(
    st.builds(Handshake, NUMBERS, NUMBERS),
    st.builds(Audio, st.binary()),
    st.builds(Text, TEXTS),
    st.sampled_from(Control),
    st.builds(MetaData, st.dictionaries(st.text(), VALUES, max_size=4)),
    st.builds(Error, TEXTS),
    st.just(Ping()),
    st.builds(ColoredText, st.integers(0, 255), TEXTS),
)


@settings(deadline=None)
@given(MESSAGES)
def test_every_message_comes_back(message):
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    ("message", "data"),
    [
        (Handshake(1, 0x01020304), "00 01000000 04030201"),
        (Audio(b"OggS"), "01 4f676753"),
        (Text(" né"), "02 20 6e c3a9"),
        (Control.START, "03 00"),
        (Control.END_TURN, "03 01"),
        (Control.PAUSE, "03 02"),
        (Control.RESTART, "03 03"),
        (MetaData({"a": 1}), "04 7b 22 61 22 3a 31 7d"),
        (Error("no"), "05 6e 6f"),
        (Ping(), "06"),
        (ColoredText(200, "x"), "07 c8 78"),
    ],
)
def test_messages_are_these_bytes(message, data):
    assert encode(message) == bytes.fromhex(data)
    assert decode(bytes.fromhex(data)) == message


def test_a_handshake_has_any_length():
    assert [decode(bytes(n)) for n in range(1, 20)] == [Handshake()] * 19
    assert decode(b"\0\1\2") == Handshake(1, 2)
    assert decode(b"\0" + struct.pack("<II", 3, 4) + b"more") == Handshake(3, 4)


@pytest.mark.parametrize(
    "data", [b"", b"\x03", b"\x03\x04", b"\x03\xff", b"\x03\0\0", b"\x07", b"\x08", b"\xff", b"OggS"]
)
def test_what_is_not_known_is_discarded(data):
    assert decode(data) is None


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\x02\xff", "A text is not in UTF-8."),
        (b"\x02\xed\xa0\x80", "A text is not in UTF-8."),
        (b"\x05\xc3", "An error's text is not in UTF-8."),
        (b"\x07\0\x80", "A coloured text is not in UTF-8."),
        (b"\x04\x80", "The metadata is not in UTF-8."),
        (b"\x04", "The metadata is not valid JSON."),
        (b'\x04{"a":NaN}', "The metadata is not valid JSON."),
        (b'\x04{"a":1e999}', "The metadata is not valid JSON."),
        (b"\x04" + b"[" * 100_000, "The metadata is not valid JSON."),
        (b"\x04[1]", "The metadata is not a JSON object."),
        (bytes(1048577), "A message has 1048577 bytes; 1048576 are allowed."),
    ],
)
def test_what_is_wrong_is_a_sentence(data, sentence):
    with pytest.raises(ProtocolError) as raised:
        decode(data)
    assert str(raised.value) == sentence


def test_the_limit_is_a_parameter():
    assert decode(b"\x01" + bytes(9), limit=10) == Audio(bytes(9))
    with pytest.raises(ProtocolError, match="11 bytes; 10 are allowed"):
        decode(b"\x01" + bytes(10), limit=10)


@pytest.mark.parametrize(
    "message",
    [
        Handshake(1 << 32, 0),
        Handshake(0, -1),
        Text("\ud800"),
        ColoredText(256, ""),
        MetaData({"a": float("inf")}),
        MetaData({"a": {1}}),
        MetaData({"a": json.loads("[" * 900 + "]" * 900), "b": object()}),
    ],
)
def test_what_does_not_fit_is_not_sent(message):
    with pytest.raises(ProtocolError, match=r"^The message \w+ cannot be sent: .*\.$"):
        encode(message)


# Packets and pages


def test_packets_have_the_lengths_of_rfc_6716():
    silk, hybrid, celt = (10, 20, 40, 60), (10, 20), (2.5, 5, 10, 20)
    milliseconds = [*silk * 3, *hybrid * 2, *celt * 4]
    for configuration, length in enumerate(milliseconds):
        toc = configuration << 3
        assert packet_samples(bytes([toc])) == length * 48
        assert packet_samples(bytes([toc | 4 | 1])) == packet_samples(bytes([toc | 2, 0])) == length * 96
        for frames in range(64):
            packet = bytes([toc | 3, 0xC0 | frames])
            if 0 < frames * length <= 120:
                assert packet_samples(packet) == frames * length * 48
            else:
                with pytest.raises(ProtocolError, match="up to 120 ms are possible"):
                    packet_samples(packet)
    for packet in (b"", b"\x03"):
        with pytest.raises(ProtocolError):
            packet_samples(packet)


def packet(number, length=60):
    """A packet of 20 ms that differs from others."""
    return bytes([0xD8]) + random.Random(number).randbytes(length - 1)


def test_a_page_may_have_many_packets_and_a_packet_many_pages():
    long = bytes([0xD8 | 3, 0x06]) + bytes(1000)  # 120 ms
    stream = [
        ogg.headers(),
        ogg.whole([packet(i) for i in range(255)], sequence=2),
        ogg.page([30, 255], packet(0, 30) + long[:255], sequence=3),
        ogg.page([255], long[255:510], flags=1, sequence=4),
        ogg.page([255, 237, 40], long[510:] + packet(1, 40), flags=1, sequence=5),
    ]
    pages = feed(stream)
    assert [page.durations for page in pages] == [(), (), (960,) * 255, (960,), (), (5760, 960)]
    assert not any(page.faults for page in pages)


def test_long_tags_are_tags_to_their_end():
    tags = ogg.TAGS + bytes(700)
    stream = [
        ogg.whole([ogg.HEAD], flags=2),
        ogg.page([255, 255], tags[:510], sequence=1),
        ogg.page(ogg.lace(tags[510:]), tags[510:], flags=1, sequence=2),
        ogg.whole([packet(0)], sequence=3),
    ]
    pages = feed(stream)
    assert [page.kind for page in pages] == [PageKind.HEAD, PageKind.TAGS, PageKind.TAGS, PageKind.AUDIO]
    assert [page.samples for page in pages] == [0, 0, 0, 960]


@pytest.mark.parametrize("serial", [42, 7])
def test_a_new_head_begins_a_new_stream(serial):
    stream = [ogg.headers(), ogg.whole([packet(0)], sequence=2), ogg.page([255], packet(1, 255), sequence=3)]
    stream += [ogg.headers(serial), ogg.whole([packet(2)], sequence=2, serial=serial)]
    pages = feed([b"".join(stream)])
    head, tags, audio = PageKind.HEAD, PageKind.TAGS, PageKind.AUDIO
    assert [page.kind for page in pages] == [head, tags, audio, audio, head, tags, audio]
    assert [page.samples for page in pages] == [0, 0, 960, 0, 0, 0, 960]


@pytest.mark.parametrize(
    ("pages", "faults"),
    [
        ([ogg.page([0], b"")], [1]),
        ([ogg.page([1, 1], b"\x03\xd8")], [1]),
        ([ogg.whole([bytes([0xDB, 0])])], [1]),
        ([ogg.whole([bytes([0xDB, 7])])], [1]),
        ([ogg.page([60], packet(0), flags=1)], [1]),
        ([ogg.page([255], packet(0, 255), flags=1), ogg.page([5, 60], packet(0, 65), flags=1, sequence=1)], [1, 1]),
        ([ogg.page([255], packet(0, 255)), ogg.page([5], b"12345", flags=1, sequence=2)], [0, 1]),
        ([ogg.page([255], packet(0, 255)), ogg.page([5], b"12345", flags=1, sequence=1, serial=1)], [0, 1]),
        ([ogg.page([255], b"\xdb\x07" + bytes(253)), ogg.page([5], b"12345", flags=1, sequence=1)], [1, 1]),
        ([ogg.page([], b""), ogg.page([], b"", flags=1, sequence=1)], [0, 0]),
    ],
)
def test_what_no_decoder_should_see_is_counted(pages, faults):
    assert [page.faults for page in feed(pages)] == faults


def test_damaged_pages_and_garbage_are_passed_over():

    def feed_good(pieces):
        return [page for page in feed(pieces) if page.kind is not PageKind.DAMAGED]

    good = [ogg.headers()[:47], ogg.whole([packet(0)], sequence=2), ogg.whole([packet(1)], sequence=3)]
    bad = bytearray(ogg.whole([packet(2)], sequence=4))
    wanted = feed(good)
    assert len(wanted) == 3
    for position in range(len(bad)):
        if position in (26, 27):
            continue  # the size: what follows is held up, below
        bad[position] ^= 0x10
        pages = feed([good[0], good[1], bytes(bad), good[2]])
        assert [page for page in pages if page.kind is not PageKind.DAMAGED] == wanted
        # In its place, unless nothing says any more that it is a page.
        assert [page.kind is PageKind.DAMAGED for page in pages[2:-1]] == [True] * (position > 4)
        bad[position] ^= 0x10
    for garbage in (b"OggS", b"OggOgg", b"Ogg", bytes(1000), b"OggS\1" * 100, b"\0OggS\0"):
        stream = good[0] + garbage + b"".join(good[1:]) + bytes(MAX_PAGE)
        assert feed_good([stream]) == wanted
        assert feed_good([stream[i : i + 1] for i in range(len(stream))]) == wanted


@pytest.mark.parametrize("garbage", [b"x", b"OggS", b"OggS\0", b"OggS\0" + b"\xff" * 22, b"OggSOgg"])
def test_a_stream_that_is_not_ogg_ends_in_a_sentence_and_can_begin_anew(garbage):
    splitter = OggSplitter(limit=100_000)
    with pytest.raises(ProtocolError, match=r"^The audio is not an Ogg stream: no page was found in 100000 bytes\.$"):
        feed([garbage * 1000] * 1000, splitter)
    assert [page.kind for page in splitter.feed(ogg.headers())] == [PageKind.HEAD, PageKind.TAGS]


def test_checksums_in_vain_are_few(monkeypatch):
    summed = []
    monkeypatch.setattr(ogg_pages, "page_checksum", lambda page: summed.append(len(page)) or b"none")
    claims = b"OggS\0" + b"\xff" * 22  # a page of 50 kB, again and again
    with pytest.raises(ProtocolError):
        OggSplitter().feed(claims * 37_000)
    assert min(summed) > 50_000
    assert sum(summed) < (1 << 18) + MAX_PAGE


def test_good_pages_make_up_for_as_much_garbage():
    splitter = OggSplitter(limit=1000)
    good = ogg.whole([packet(0, 500)])
    for _ in range(50):
        assert len(feed([good, bytes(len(good) - 10)], splitter)) == 1
    with pytest.raises(ProtocolError):
        feed([good, bytes(len(good) + 100)] * 50, splitter)


# Pieces of streams: pages, halves of pages, damaged pages, garbage.
PACKETS = st.lists(st.binary(max_size=600), min_size=0, max_size=4)
PAGES = st.builds(
    lambda packets, flags, sequence, serial: ogg.whole(packets, flags=flags, sequence=sequence, serial=serial),
    PACKETS,
    st.integers(0, 7),
    st.integers(0, 3),
    st.integers(0, 1),
)
HALVES = st.builds(
    lambda data, sequence: ogg.page([255] * (len(data) // 255), data, flags=1, sequence=sequence),
    st.sampled_from([packet(3, 255), packet(4, 510), ogg.TAGS + bytes(255 - len(ogg.TAGS))]),
    st.integers(0, 3),
)
GARBAGE = st.binary(max_size=50) | st.sampled_from([b"OggS", b"Ogg", b"OggS\0", b"OggS\0" + bytes(22), ogg.headers()])


@settings(deadline=None, max_examples=200)
@given(st.lists(PAGES | HALVES | GARBAGE | PAGES.map(lambda data: data[:-3]), max_size=12), st.data())
def test_any_split_gives_the_same_pages(pieces, data):
    stream = b"".join(pieces)
    pages = feed([stream])
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    assert feed(split(stream, cuts)) == pages
    assert feed([stream[i : i + 1] for i in range(len(stream))]) == pages


# The address


def test_the_parameters_of_the_published_page_are_read():
    query = {
        "text_temperature": "0.7", "text_topk": "25", "audio_temperature": "0.8", "audio_topk": "250", "pad_mult": "0",
        "text_seed": "18446744073709551615", "audio_seed": "1", "repetition_penalty_context": "64", "repetition_penalty": "1.0",
        "email": "a@b.c", "worker_auth_id": "x", "max_steps": "99", "realtime": "0", "imageUrl": "?", "worker_addr": "same",
    }  # fmt: skip
    assert ChatParameters.from_query(query) == ChatParameters(
        text_temperature=0.7, text_topk=25, audio_temperature=0.8, audio_topk=250, max_steps=99, text_seed=(1 << 64) - 1,
        audio_seed=1, pad_mult=0.0, repetition_penalty_context=64, repetition_penalty=1.0, email="a@b.c", worker_auth_id="x",
        realtime=False,
    )  # fmt: skip


PERSONA = ("voice_prompt", "text_prompt")


def test_a_voice_and_a_role_are_read_where_they_mean_something():
    role = "  You are wise.\r\n\tYour name is\u00a0Zoë \U0001f469\u200d\U0001f680 \u3000"
    read = ChatParameters.from_query({"voice_prompt": "NATF0.pt", "text_prompt": role})
    assert read.voice_prompt == "NATF0.pt"
    assert read.text_prompt == "You are wise. Your name is Zoë \U0001f469\u200d\U0001f680"
    assert ChatParameters.from_query({"text_prompt": " \n"}) == ChatParameters()
    assert ChatParameters.from_query({"text_prompt": "x" * 1000 + "\n"}).text_prompt == "x" * 1000
    wrong = {"voice_prompt": "a\x00", "text_prompt": "x" * 1001}
    assert ChatParameters.from_query(wrong, without=PERSONA) == ChatParameters()


def test_parameters_that_mean_nothing_are_named():
    assert unknown_parameters(vars(ChatParameters())) == []
    query = "voice_prompt=NATF2.pt&text_topk=3&text_prompt=&text_topK=3&voice_prompt=x&a%1bb%0Ac=1&" + "y" * 500 + "=1"
    names = [name for name, _ in parse_qsl(query, keep_blank_values=True)]
    assert unknown_parameters(names) == ["text_topK", "a\ufffdb c", "y" * 39 + "…"]
    named = unknown_parameters(names, PERSONA)
    assert named == ["voice_prompt", "text_prompt", "text_topK", "a\ufffdb c", "y" * 39 + "…"]
    assert len(unknown_parameters(f"x{i}" for i in range(1000))) == 20


def test_what_is_missing_or_empty_has_its_default():
    none = ChatParameters(0.8, 250, 0.8, 250, 4500, None, None, None, None, None, None, None, True, False)
    assert ChatParameters.from_query({}) == none
    assert ChatParameters.from_query(dict.fromkeys(vars(none), "")) == none
    own = ChatParameters(text_temperature=0.0, realtime=False)
    assert ChatParameters.from_query({"text_topk": "0"}, own) == ChatParameters(0.0, 0, realtime=False)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("text_temperature", ["-1", "nan", "inf", "1e999", "1_0", " 1", "0x1", "٣", "x", "1,5", "-0.1", "1" * 5000]),
        ("text_topk", ["-1", "1.5", "2147483648", "9" * 5000, "²", "+1"]),
        ("audio_temperature", ["-1", "1e", "1e39"]),
        ("audio_topk", ["-1", "all"]),
        ("max_steps", ["0", "-1", "2147483648"]),
        ("text_seed", ["-1", "18446744073709551616", "1e3"]),
        ("audio_seed", ["-1", "18446744073709551616"]),
        ("pad_mult", ["nan", "-inf", "--1", "1e39", "-1e39"]),
        ("repetition_penalty_context", ["-1", "10001", "1.0"]),
        ("repetition_penalty", ["0", "-1", "0.0", "1e39", "1e-46"]),
        ("email", ["x" * 1001, "a\nb"]),
        ("worker_auth_id", ["x" * 1001, "a\0b"]),
        ("voice_prompt", ["x" * 1001, "a\nb"]),
        ("text_prompt", ["x" * 1001, "a\0b", "a\x1b[31m", "a\ud800"]),
        ("realtime", ["2", "true", "no", "-"]),
        ("stats", ["2", "true"]),
    ],
)
def test_a_wrong_parameter_is_a_sentence_that_names_it(name, values):
    for value in values:
        with pytest.raises(ProtocolError, match=rf"^The parameter {name} .*\.$") as raised:
            ChatParameters.from_query({name: value})
        assert len(str(raised.value)) < 150
        assert str(raised.value).isprintable()


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(list(vars(ChatParameters()))), st.text(st.sampled_from("0123456789.-+eE_ xn"), max_size=8)
    )
)
def test_parameters_are_read_or_refused(query):
    try:
        read = ChatParameters.from_query(query)
    except ProtocolError:
        return
    for name, text in query.items():
        value = getattr(read, name)
        if text.strip() and name != "realtime" and not isinstance(value, str):
            assert value == float(text)


def test_the_metadata_has_what_the_published_page_wants():
    numbers = (
        "text_temperature", "text_topk", "audio_temperature", "audio_topk",
        "pad_mult", "repetition_penalty_context", "repetition_penalty",
    )  # fmt: skip
    for chosen in (
        ChatParameters(),
        ChatParameters(repetition_penalty=1.3, repetition_penalty_context=64, pad_mult=-1.0),
    ):
        message = parameters.describe_server(chosen, "lm", "mimi", "here")
        values = decode(encode(message)).values
        assert all(type(values[name]) in (int, float) for name in numbers)
        assert (values["lm_model_file"], values["mimi_model_file"], values["instance_name"]) == ("lm", "mimi", "here")
        assert set(values) == {*numbers, "lm_model_file", "mimi_model_file", "instance_name", "build_info"}
        assert values["build_info"] == dict.fromkeys(BUILD_KEYS, "unknown")
    assert values["repetition_penalty"] == 1.3


# Any bytes


def hostile(rng, stream):
    """Bytes that are nearly a message or nearly Ogg, or nothing of the kind."""
    match rng.randrange(6):
        case 0:
            return rng.randbytes(rng.randrange(40))
        case 1:
            return bytes([rng.randrange(10)]) + rng.randbytes(rng.randrange(20))
        case 2:
            return b"\4" + "".join(rng.choices('{}[]",:0123456789eE.-\\u nultrfasNI', k=rng.randrange(30))).encode()
        case 3:
            return b"\1OggS\0" + rng.randbytes(21) + bytes([rng.choice((0, 1, 255))]) + rng.choice((b"", b"\xff" * 255))
    begin = rng.randrange(len(stream))
    data = bytearray(b"\1" + stream[begin : begin + rng.randrange(400)])
    for _ in range(rng.randrange(3)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def test_any_bytes_are_read_or_refused_within_a_constant_of_memory(recorded):
    rng = random.Random(8)
    stream = b"".join(audio_of(recorded, SERVER))
    splitter = OggSplitter()
    begin = time.perf_counter()
    kinds, refused, pages = set(), 0, 0
    tracemalloc.start()
    try:
        for _ in range(100_000):
            data = hostile(rng, stream)
            try:
                message = decode(data)
                kinds.add(type(message))
                if isinstance(message, Audio):
                    cut = rng.randrange(len(message.data) + 1)
                    pages += len(splitter.feed(message.data[:cut])) + len(splitter.feed(message.data[cut:]))
                elif message is not None:
                    encode(message)
            except ProtocolError:
                refused += 1
            assert len(splitter._buffer) < MAX_PAGE
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kinds == {Handshake, Audio, Text, Control, MetaData, Error, Ping, ColoredText, type(None)}
    assert refused > 1000
    assert pages > 1000
    assert peak < 1 << 20
    assert time.perf_counter() - begin < 30


@pytest.mark.parametrize("claim", [b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80"])
def test_no_number_in_the_bytes_takes_memory(claim):
    """Fields of four bytes that could be taken for a size, in every place."""
    stream = bytearray(ogg.headers() + ogg.whole([packet(0)], sequence=2))
    tracemalloc.start()
    try:
        for position in range(len(stream) - 4):
            damaged = bytes(stream[:position]) + claim + bytes(stream[position + 4 :])
            feed([damaged])
            for kind in range(8):
                try:
                    decode(bytes([kind]) + damaged[:20])
                except ProtocolError:
                    continue
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
