"""The decoder of the wire: what can be decoded is heard, what cannot is said, and what is missing keeps its place."""

import io
import struct

import msh_native
import numpy as np
import ogg
import pytest
import soundfile
from paths import CASES, DIGITS

from msh_mlx.errors import ProtocolError
from msh_mlx.format import SAMPLE_RATE
from msh_mlx.net.opus import OpusDecoder, OpusEncoder
from msh_mlx.sound.ogg import GRANULE_RATE, OggSplitter, PageKind, write_page

PACKET = 960  # samples at 24 kHz


def pages_of(data):
    """The pages of a file, each with all its bytes, good or not."""
    pages, position = [], 0
    while position < len(data):
        count = data[position + 26]
        size = 27 + count + sum(data[position + 27 : position + 27 + count])
        pages.append(data[position : position + size])
        position += size
    return pages


def case(name):
    return pages_of((CASES / name).read_bytes())


def hear(pages, decoder=None, **options):
    """The sound after each piece."""
    decoder = decoder or OpusDecoder()
    return [decoder.decode(page, **options) for page in pages]


def packets(count, seed=0):
    """Packets of 40 ms of a sound that is nowhere silent."""
    chance = np.random.default_rng(seed)
    pcm = (0.1 * chance.standard_normal(count * PACKET)).astype(np.float32)
    pages = OggSplitter().feed(OpusEncoder().encode(pcm))
    return [packet for page in pages for packet in page.packets]


def stream(packets, a_page=1, rate=GRANULE_RATE, serial=42):
    """Pages with so many packets each, whose granules count at `rate`; None: they say nothing."""
    pages = [ogg.whole([ogg.HEAD], flags=2, serial=serial), ogg.whole([ogg.TAGS], sequence=1, serial=serial)]
    for index in range(0, len(packets), a_page):
        done = min(index + a_page, len(packets)) * PACKET * (rate or 0) // SAMPLE_RATE
        part = packets[index : index + a_page]
        pages.append(ogg.whole(part, sequence=len(pages), granule=done if rate else 7, serial=serial))
    return pages


def damaged(page, at=-1):
    """A page with another byte than that of which it has the checksum."""
    return page[: at % len(page)] + bytes([page[at] ^ 0x55]) + page[at % len(page) + 1 :]


def refused(pieces, *, silence=False):
    """What is said, and after how many of the pieces; before, there may be no sound, or silence for what is damaged."""
    decoder = OpusDecoder()
    for count, piece in enumerate(pieces, 1):
        try:
            heard = decoder.decode(piece)
            assert not (heard.any() if silence else len(heard))
        except ProtocolError as error:
            return str(error), count
    raise AssertionError("it is not refused")


# ---- what is written -----------------------------------------------------------------------------------------------------


def test_another_decoder_plays_it_from_the_first_sample():
    """It heeds the header: what it leaves out in front is the codec's delay."""
    encoder = OpusEncoder()
    said = soundfile.read(DIGITS, dtype="float32")[0][: 50 * PACKET]
    pieces = [encoder.encode(said[begin : begin + 700]) for begin in range(0, len(said), 700)]
    pages = OggSplitter().feed(b"".join(pieces))
    assert [page.kind for page in pages[:3]] == [PageKind.HEAD, PageKind.TAGS, PageKind.AUDIO]
    assert [page.granule for page in pages[2:]] == [2 * PACKET * count for count in range(1, 51)]
    heard, rate = soundfile.read(io.BytesIO(b"".join(pieces)), dtype="float32")
    heard = heard[:: rate // SAMPLE_RATE]
    count = len(said) - encoder.delay
    assert len(heard) == count
    assert np.sum((heard - said[:count]) ** 2) < 0.05 * np.sum(said**2)


def test_sound_above_full_scale_is_cut_off():
    loud = 3 * np.sin(np.arange(10 * PACKET) / 9).astype(np.float32)
    heard = OpusDecoder().decode(OpusEncoder().encode(loud))
    assert len(heard) == len(loud)
    assert 0.9 < np.abs(heard[PACKET:]).max() <= 1.0
    assert np.corrcoef(heard[PACKET:-60], np.clip(loud, -1, 1)[PACKET - 60 : -120])[0, 1] > 0.99


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: msh_native.OpusEncoder(44100, bitrate=48000, complexity=5), "the sample rate"),
        (lambda: msh_native.OpusEncoder(SAMPLE_RATE, bitrate=0, complexity=5), "the bitrate"),
        (lambda: msh_native.OpusEncoder(SAMPLE_RATE, bitrate=48000, complexity=11), "the complexity"),
        (lambda: msh_native.OpusDecoder(44100, 1), "the sample rate"),
        (lambda: msh_native.OpusDecoder(SAMPLE_RATE, 3), "1 or 2 channels, not 3"),
        (lambda: msh_native.OpusDecoder(SAMPLE_RATE, 1).decode(b""), "cannot decode"),
        (lambda: msh_native.OpusDecoder(SAMPLE_RATE, 1).decode(b"\3\0"), "cannot decode"),
        (
            lambda: msh_native.OpusEncoder(SAMPLE_RATE, bitrate=48000, complexity=5).encode(np.zeros(7, np.float32)),
            "so many samples",
        ),
    ],
)
def test_what_opus_does_not_have_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


# ---- what can be decoded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [0, 1000, 1])
def test_tags_of_any_length_are_read(piece):
    """Pages that a header fills, in any pieces, sound as those with a short one."""
    pages = case("tags66k.opus")
    assert len(pages[1]) > 65_000
    short = [pages[0], ogg.whole([ogg.TAGS], sequence=1, serial=struct.unpack_from("<I", pages[0], 14)[0]), *pages[3:]]
    data = b"".join(pages)
    decoder = OpusDecoder()
    heard = hear([data[i : i + piece] for i in range(0, len(data), piece)] if piece else pages, decoder)
    assert np.array_equal(np.concatenate(heard), np.concatenate(hear(short)))
    assert np.abs(np.concatenate(heard)).max() > 0.1
    assert decoder.faults == 0


def test_many_packets_on_a_page_are_heard():
    """More than five seconds at once: as much as in pages of one packet."""
    said = packets(150)
    expected = np.concatenate(hear(stream(said)))
    assert len(expected) == 150 * PACKET
    for a_page in (7, 150):
        assert np.array_equal(np.concatenate(hear(stream(said, a_page))), expected)


def test_packets_over_pages_are_heard():
    said = packets(6)
    long = bytes([said[0][0] | 3, len(said)]) + b"\0" * 700  # one packet of several frames, on three pages
    whole = [*stream([])[:2], write_page(long, 2, serial=42)]
    cut = [
        *stream([])[:2],
        ogg.page([255], long[:255], sequence=2, granule=-1),
        ogg.page([255], long[255:510], flags=1, sequence=3, granule=-1),
        ogg.page(ogg.lace(long[510:]), long[510:], flags=1, sequence=4),
    ]
    assert np.array_equal(np.concatenate(hear(cut)), np.concatenate(hear(whole)))


def test_a_page_that_can_be_decoded_in_part_is():
    """What is not a packet is silence, and the packets beside it are heard."""
    said = packets(9)
    bad = [*said[:3], b"", *said[4:]]
    decoder = OpusDecoder()
    heard = np.concatenate(hear(stream(bad, 3), decoder))
    assert len(heard) == 9 * PACKET
    assert (decoder.faults, decoder.lost) == (1, pytest.approx(0.04))
    assert np.array_equal(heard[: 3 * PACKET], np.concatenate(hear(stream(said, 3)))[: 3 * PACKET])
    assert not heard[3 * PACKET : 4 * PACKET].any()
    assert all(heard[i : i + 100].any() for i in range(4 * PACKET, len(heard), 100))


@pytest.mark.parametrize(
    ("magic", "sound"), [(b"fishead\0", b"fisbone\0"), (b"\x80theora\3\2\1", b"\x81theora"), (b"mystery!", b"x")]
)
def test_streams_beside_it_are_not_heard(magic, sound):
    said = stream(packets(4))
    other = [ogg.whole([magic + bytes(40)], flags=2, serial=7), ogg.whole([sound + bytes(40)], sequence=1, serial=7)]
    decoder = OpusDecoder()
    heard = hear([other[0], *said[:2], other[1], said[2], other[1], *said[3:]], decoder)
    assert np.array_equal(np.concatenate(heard), np.concatenate(hear(said)))
    assert decoder.faults == 0


def test_one_stream_after_the_other():
    one, two = stream(packets(3), serial=1), stream(packets(3, seed=1), serial=2)
    expected = np.concatenate([*hear(one), *hear(two)])
    decoder = OpusDecoder()
    assert np.array_equal(np.concatenate(hear([*one, *two], decoder)), expected)
    assert np.array_equal(np.concatenate(hear([*one, *stream(packets(3, seed=1), serial=1)])), expected)
    assert decoder.faults == 0


def test_nothing_is_heard_too_early_and_nothing_is_missing_then():
    said = stream(packets(6))
    decoder = OpusDecoder()
    assert not len(np.concatenate(hear(said[:5], decoder, keep=False)))
    assert len(np.concatenate(hear(said[5:], decoder))) == 3 * PACKET
    assert decoder.faults == 0


def test_who_comes_into_the_midst_has_lost_nothing():
    said = stream(packets(9))
    decoder = OpusDecoder()
    assert len(np.concatenate(hear([*said[:2], *said[7:]], decoder))) == 4 * PACKET
    assert decoder.faults == 0


# ---- what is missing keeps its place -------------------------------------------------------------------------------------


def test_a_damaged_page_is_silent_and_counted():
    pages = case("bad_crc.opus")
    decoder = OpusDecoder()
    heard = hear(pages, decoder)
    assert [len(pcm) for pcm in heard] == [0, 0, 23520, 24000, 24720]
    (silent,) = [pcm for pcm in heard[2:] if not pcm.any()]
    assert decoder.faults == 1
    assert decoder.lost == pytest.approx(len(silent) / SAMPLE_RATE)


@pytest.mark.parametrize("rate", [48_000, 24_000, None])
@pytest.mark.parametrize("at", [-1, 14, 18, 6, 22, 0, None])
@pytest.mark.parametrize("which", [0, 1, 4])
def test_what_is_missing_keeps_its_place(rate, at, which):
    """A page that does not come (None) or with any byte changed, whatever the granules count, the first or in the midst."""
    said = packets(60)
    good = stream(said, 10, rate)
    place = which + 2
    bad = [*good[:place], *([] if at is None else [damaged(good[place], at)]), *good[place + 1 :]]
    if which == 4:  # byte by byte
        data = b"".join(bad)
        bad = [data[i : i + 1] for i in range(len(data))]
    decoder = OpusDecoder()
    heard = np.concatenate(hear(bad, decoder))
    expected = np.concatenate(hear(good))
    length = 10 * PACKET
    if which == 0 and at in (14, 18, 0, None):
        # Nobody knows whether there was a page before the first that came.
        assert len(heard) == 50 * PACKET
        return
    assert len(heard) == len(expected) == 60 * PACKET
    assert decoder.faults == 1
    assert decoder.lost == pytest.approx(0.4)
    begin = which * length
    assert np.array_equal(heard[:begin], expected[:begin])
    assert not heard[begin : begin + length].any()
    assert all(heard[i : i + 100].any() for i in range(begin + length, len(heard), 100))


def test_the_last_page_of_different_ones_is_measured_by_the_granules():
    """Pages of 80 ms, of which one of 400 ms is missing."""
    said = packets(30)
    pages = stream(said[:10], 2)
    for first, last, sequence in ((20, 22, 8), (22, 30, 9)):
        granule = last * PACKET * 2
        pages.append(ogg.whole(said[first:last], sequence=sequence, granule=granule))
    decoder = OpusDecoder()
    assert len(np.concatenate(hear(pages, decoder))) == 30 * PACKET
    assert decoder.lost == pytest.approx(0.4)


@pytest.mark.parametrize("sequence", [3, 0, 1 << 31, (1 << 32) - 1])
def test_numbers_that_go_back_tell_nothing(sequence):
    said = packets(5)
    pages = [*stream(said[:4]), ogg.whole(said[4:], sequence=sequence, granule=5 * PACKET * 2)]
    decoder = OpusDecoder()
    heard = np.concatenate(hear(pages, decoder))
    if sequence == 1 << 31:  # as far ahead as back
        assert len(heard) >= 5 * PACKET
    else:
        assert len(heard) == 5 * PACKET
        assert decoder.faults == 0


def test_no_number_makes_silence_without_end():
    """Granules and numbers that claim years, in one message: ten seconds of silence at most."""
    said = packets(1)[0]
    pages = stream([said] * 2)
    for index in range(1, 200):
        sequence, granule = index * 10_000_000, index * (1 << 50)
        pages.append(ogg.whole([said], sequence=sequence, granule=granule))
    heard = OpusDecoder().decode(b"".join(pages))
    assert len(heard) <= 10 * SAMPLE_RATE + 201 * PACKET


# ---- what cannot be decoded is said --------------------------------------------------------------------------------------


def test_vorbis_is_named_with_its_second_page():
    said, count = refused(case("live_vorbis.ogg"))
    assert said == "The audio in Ogg is Vorbis; send Opus."
    assert count == 2


@pytest.mark.parametrize(
    ("magic", "name"),
    [
        (b"\x7fFLAC\1\0", "FLAC"),
        (b"Speex   1.2", "Speex"),
        (b"\x80theora\3\2\1", "Theora, which is video"),
        (b"PCM     ", "PCM"),
        (b"\0\1\2", "of an unknown kind"),
    ],
)
def test_other_codecs_are_named(magic, name):
    pages = [ogg.whole([magic + bytes(40)], flags=2), ogg.whole([bytes(60)], sequence=1, granule=-1)]
    assert refused(pages) == (f"The audio in Ogg is {name}; send Opus.", 2)
    skeleton = ogg.whole([b"fishead\0" + bytes(56)], flags=2, serial=1)
    bone = ogg.whole([b"fisbone\0" + bytes(56)], sequence=1, serial=1)
    assert refused([skeleton, pages[0], bone, pages[1]]) == (f"The audio in Ogg is {name}; send Opus.", 4)
    after = stream(packets(3))
    decoder = OpusDecoder()
    hear(after, decoder)
    with pytest.raises(ProtocolError, match=name):
        hear([ogg.whole([magic + bytes(40)], flags=2, serial=3), ogg.whole([bytes(60)], sequence=1, serial=3)], decoder)


def head(channels, family, streams, coupled):
    mapping = b"" if family == 0 else bytes([streams, coupled, *range(channels)])
    return b"OpusHead" + struct.pack("<BBHIhB", 1, channels, 0, 48000, 0, family) + mapping


@pytest.mark.parametrize(
    ("packet", "said"),
    [
        (head(6, 1, 4, 2), "The audio is Opus of 6 channels; send one, or two."),
        (head(2, 255, 2, 0), "The audio is Opus of 2 channels; send one, or two."),
        (head(16, 255, 16, 0), "The audio is Opus of 16 channels; send one, or two."),
        (head(3, 0, 0, 0), "The audio is Opus of 3 channels; send one, or two."),
        (head(1, 0, 0, 0)[:18], "The header of the audio (OpusHead) is cut off."),
        (head(1, 1, 1, 0)[:20], "The header of the audio (OpusHead) is cut off."),
        (b"OpusHead\x10" + head(1, 0, 0, 0)[9:], "The header of the audio (OpusHead) is of an unknown version."),
        (head(0, 0, 0, 0), "The header of the audio (OpusHead) is of an unknown version."),
    ],
)
def test_headers_that_no_decoder_takes(packet, said):
    assert refused([ogg.whole([packet], flags=2)]) == (said, 1)


@pytest.mark.parametrize("packet", [head(1, 1, 1, 0), head(1, 255, 1, 0), head(2, 0, 0, 0)])
def test_headers_of_one_stream_are_taken(packet):
    said = stream(packets(3))
    heard = hear([ogg.whole([packet], flags=2), *said[1:]])
    assert np.abs(np.concatenate(heard)).max() > 0.05


@pytest.mark.parametrize("toc", [0xE0, 0xE8, 0xF0, 0xF8, 0x18])  # 2.5, 5, 10, 20 and 60 ms
@pytest.mark.parametrize("length", [1, 2, 80, 400])
def test_packets_without_pages_are_named_within_three_seconds_of_sound(toc, length):
    milliseconds = {0xE0: 2.5, 0xE8: 5, 0xF0: 10, 0xF8: 20, 0x18: 60}[toc]
    said, count = refused([bytes([toc]) + bytes(length - 1)] * round(3000 / milliseconds))
    assert said == "The audio comes as bare packets of Opus; send them in Ogg pages."
    assert count * milliseconds <= 2100


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"RIFF\x24\0\0\0WAVEfmt ", "WAV"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81", "WebM or Matroska"),
        (b"fLaC\0\0\0\x22", "FLAC"),
        (b"ID3\4\0\0", "MP3"),
        (b"\0\0\0\x20ftypM4A ", "MP4 or M4A"),
        (b"FORM\0\0\0\0AIFF", "AIFF"),
        (b"caff\0\1\0\0", "CAF"),
    ],
)
def test_other_files_are_named_at_once(start, name):
    assert refused([start + bytes(100)]) == (f"The audio is {name}; send Opus in Ogg pages.", 1)


@pytest.mark.parametrize("rate", [1500, 4000, 8000, 48_000, 96_000])  # bytes a second
def test_sound_that_is_nothing_known_is_refused_within_three_seconds(rate):
    chance = np.random.default_rng(rate)
    pieces = [chance.integers(0, 256, rate // 25, np.uint8).tobytes() for _ in range(75)]
    said, _ = refused(pieces)
    assert said.startswith(("The audio is not an Ogg stream: no page was found in ", "The audio comes as bare packets"))


def test_pages_without_a_header_are_refused_within_three_seconds():
    pages = stream(packets(75))[2:]
    said, count = refused(pages)
    assert said == "The audio has no beginning: its header (OpusHead) did not come; begin a new stream."
    assert 50 <= count <= 52


def test_what_comes_in_the_midst_instead_of_pages_is_refused_too():
    decoder = OpusDecoder()
    hear(stream(packets(5)), decoder)
    with pytest.raises(ProtocolError, match="bare packets"):
        hear(packets(75), decoder)
    # A new stream may follow.
    assert len(np.concatenate(hear(stream(packets(5)), decoder))) == 5 * PACKET


@pytest.mark.parametrize("nonsense", [b"", b"no page", b"OggS", b"Ogg", bytes(300)])
def test_a_little_nonsense_is_passed_over(nonsense):
    said = stream(packets(4))
    pieces = [nonsense, *said[:3], nonsense, *said[3:]]
    assert np.array_equal(np.concatenate(hear(pieces)), np.concatenate(hear(said)))


@pytest.mark.parametrize("a_page", [1, 5, 25])
@pytest.mark.parametrize("piece", [0, 1000, 7])
def test_many_damaged_pages_do_not_end_a_good_stream(a_page, piece):
    """Twenty seconds of 250 kB, page by page or in any pieces: silence of their length."""
    packet = packets(1)[0]
    said = [packet + bytes(500 - len(packet))] * 600
    good = stream(said, a_page)
    bad = [*good[:3], *map(damaged, good[3:-1]), good[-1]]
    data = b"".join(bad)
    pieces = [data[i : i + piece] for i in range(0, len(data), piece)] if piece else bad
    decoder = OpusDecoder()
    assert len(np.concatenate(hear(pieces, decoder))) == 600 * PACKET
    assert decoder.faults == len(bad) - 4
    assert decoder.lost + decoder.heard == pytest.approx(600 * 0.04)
    assert decoder.heard == pytest.approx(2 * a_page * 0.04)


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("a_page", [1, 25])
def test_wrong_checksums_everywhere_are_named_within_three_seconds(first, a_page):
    """Also where the headers are right; and not because of one long page."""
    good = stream(packets(100), a_page)
    said, count = refused([*good[:first], *map(damaged, good[first:])], silence=True)
    assert said.startswith("The checksums of the audio's pages are wrong")
    assert (count - 3) * a_page * 0.04 <= 2
    long = stream(packets(101), 100)
    assert len(np.concatenate(hear([*long[:2], damaged(long[2]), long[3]]))) == 101 * PACKET


def test_a_large_damaged_header_does_not_hide_the_sound():
    pages = case("tags66k.opus")
    decoder = OpusDecoder()
    heard = np.concatenate(hear([pages[0], *map(damaged, pages[1:3]), *pages[3:]], decoder))
    assert np.abs(heard).max() > 0.1
    assert len(heard) >= len(np.concatenate(hear(pages))) - PACKET


def test_a_large_damaged_page_does_not_end_a_stream():
    """Pages as long as they can be: no more than one is lost."""
    said = [packets(1)[0][:1] + bytes(250)] * 250
    good = stream(said, 125)
    good += [ogg.whole(said, sequence=4, granule=500 * PACKET * 2)]
    assert len(good[4]) > 60_000
    bad = [*good[:4], damaged(good[4])]
    bad.append(ogg.whole(said[:5], sequence=5, granule=505 * PACKET * 2))
    decoder = OpusDecoder()
    data = b"".join(bad)
    assert len(np.concatenate(hear([data[i : i + 1000] for i in range(0, len(data), 1000)], decoder))) == 505 * PACKET
    assert decoder.faults == 1


def test_damaged_pages_have_their_places_among_the_others():
    pages = stream(packets(3))
    kinds = [page.kind for page in OggSplitter().feed(b"".join([*pages[:3], damaged(pages[3]), pages[4]]))]
    assert kinds == [PageKind.HEAD, PageKind.TAGS, PageKind.AUDIO, PageKind.DAMAGED, PageKind.AUDIO]


# ---- two channels --------------------------------------------------------------------------------------------------------


def best_match(heard, wanted):
    """How alike two sounds are, 1 for the same, wherever the first begins within 20 ms."""
    n = len(wanted) - 480
    scores = [
        abs(heard[k : k + n] @ wanted[:n]) / np.linalg.norm(heard[k : k + n]) / np.linalg.norm(wanted[:n])
        for k in range(480)
    ]
    return max(scores)


@pytest.mark.parametrize("size", [1, 300, 5000, 100_000])
def test_two_channels_in_opposite_phase_are_heard_and_told(size):
    data = (CASES / "stereo_opposite_phase.opus").read_bytes()
    left = soundfile.read(CASES / "stereo_opposite_phase.opus", dtype="float32")[0][:, 0]
    decoder = OpusDecoder()
    heard = np.concatenate([decoder.decode(data[begin : begin + size]) for begin in range(0, len(data), size)])
    assert best_match(heard, left) > 0.9999
    assert np.linalg.norm(heard) == pytest.approx(np.linalg.norm(left), rel=0.01)
    assert (decoder.faults, decoder.lost) == (0, 0)
    [note] = decoder.notes
    assert "in opposite phase" in note
