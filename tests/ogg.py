"""Ogg pages by RFC 3533, made in a slow and obvious way. Tests send them in place of an encoder's."""

import struct


def checksum(data):
    """Return the checksum of RFC 3533, computed bit by bit: polynomial 0x04c11db7, from 0."""
    crc = 0
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7) & 0xFFFFFFFF if crc >> 31 else crc << 1
    return crc


def page(lengths, body, flags=0, granule=0, sequence=0, serial=42):
    """Return a page. The lengths of its segments are given as they stand in the page."""
    header = b"OggS\0" + struct.pack("<BqII", flags, granule, serial, sequence)
    rest = bytes([len(lengths), *lengths]) + body
    return header + struct.pack("<I", checksum(header + b"\0\0\0\0" + rest)) + rest


def lace(packet):
    """Return the lengths of a packet's segments."""
    return [*[255] * (len(packet) // 255), len(packet) % 255]


def whole(packets, **options):
    """Return a page of whole packets."""
    return page([length for packet in packets for length in lace(packet)], b"".join(packets), **options)


HEAD = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 3840, 24000, 0, 0)
TAGS = b"OpusTags" + struct.pack("<I4sI", 4, b"test", 0)


def headers(serial=42):
    """Return the two pages that begin a stream, as the published programs write them."""
    return whole([HEAD], flags=2, serial=serial) + whole([TAGS], sequence=1, serial=serial)
