"""Ogg pages as RFC 3533 says, made slowly and obviously: what the tests send in place of an encoder."""

import struct


def checksum(data):
    """The sum of RFC 3533, bit by bit: polynomial 0x04c11db7, from 0."""
    crc = 0
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7) & 0xFFFFFFFF if crc >> 31 else crc << 1
    return crc


def page(lengths, body, flags=0, granule=0, sequence=0, serial=42):
    """A page of segments; the lengths of segments are given as they stand in it."""
    header = b"OggS\0" + struct.pack("<BqII", flags, granule, serial, sequence)
    rest = bytes([len(lengths), *lengths]) + body
    return header + struct.pack("<I", checksum(header + b"\0\0\0\0" + rest)) + rest


def lace(packet):
    """The lengths of a packet's segments."""
    return [*[255] * (len(packet) // 255), len(packet) % 255]


def whole(packets, **options):
    """A page of whole packets."""
    return page([length for packet in packets for length in lace(packet)], b"".join(packets), **options)


HEAD = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 3840, 24000, 0, 0)
TAGS = b"OpusTags" + struct.pack("<I4sI", 4, b"test", 0)


def headers(serial=42):
    """The two pages with which a stream begins, as the published programs write them."""
    return whole([HEAD], flags=2, serial=serial) + whole([TAGS], sequence=1, serial=serial)
