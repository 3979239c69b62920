"""Colour profiles (ICC.1, version 2) made on the spot, and what a colour in them is in sRGB, by formula."""

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
COLORANTS = {  # XYZ of red, green and blue at D50, from the standards' chromaticities by Bradford's adaptation
    "srgb": ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)),
    "display-p3": ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)),
    "adobe-rgb": ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
    "prophoto": ((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.00009), (0.03134, 0.00009, 0.82491)),
}
GAMMA = 2.2


def _profile(space, pcs, tags, kind=b"mntr"):
    """A profile from its tags {name: bytes}."""
    text = b"made for a test"
    described = b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + b"\0" + bytes(4 + 4 + 2 + 1 + 67)
    tags = {b"desc": described, b"cprt": b"text" + bytes(4) + text + b"\0", **tags}
    tags.setdefault(b"wtpt", _xyz(D50))
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12s4s", start + len(body), bytes(4), 0x02400000, kind, space, pcs, bytes(12), b"acsp"
    )
    head += bytes(28) + b"".join(_fixed(x) for x in D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _fixed(x):
    return struct.pack(">i", round(x * 65536))


def _xyz(values):
    return b"XYZ " + bytes(4) + b"".join(_fixed(x) for x in values)


def _curve(gamma):
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def rgb(name):
    """The profile of a space of COLORANTS, with one gamma."""
    tags = {letter + b"XYZ": _xyz(x) for letter, x in zip((b"r", b"g", b"b"), COLORANTS[name], strict=True)}
    return _profile(b"RGB ", b"XYZ ", {**tags, **{letter + b"TRC": _curve(GAMMA) for letter in (b"r", b"g", b"b")}})


def gray(gamma):
    """A gray profile with a gamma."""
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk(inks):
    """A CMYK profile in which one ink alone, in full, is a colour (L, a, b) of `inks`; all others are white paper."""
    grid = b""
    for corner in range(16):  # the last channel, K, varies fastest
        ink = {8: "C", 4: "M", 2: "Y", 1: "K"}.get(corner, "")
        lightness, a, b = inks.get(ink, (100, 0, 0))
        grid += bytes([round(lightness * 2.55), a + 128, b + 128])
    ramp, unit = bytes(range(256)), b"".join(_fixed(float(k in (0, 4, 8))) for k in range(9))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + unit + ramp * 4 + grid + ramp * 3
    return _profile(b"CMYK", b"Lab ", {b"A2B0": table, b"A2B1": table}, b"prtr")


def in_srgb(name, colour):
    """A colour 0..255 of a space of COLORANTS in sRGB, 0..255."""
    xyz = np.array(COLORANTS[name]).T @ (np.array(colour) / 255) ** GAMMA
    return _encoded(xyz)


def lab_in_srgb(lab):
    """A colour (L, a, b) in sRGB, 0..255."""
    y = (lab[0] + 16) / 116
    roots = np.array([y + lab[1] / 500, y, y - lab[2] / 200])
    return _encoded(np.where(roots > 6 / 29, roots**3, (roots - 4 / 29) * 108 / 841) * D50)


def _encoded(xyz):
    linear = np.clip(np.linalg.solve(np.array(COLORANTS["srgb"]).T, xyz), 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
