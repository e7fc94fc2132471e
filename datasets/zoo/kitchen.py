"""Kitchen objects: mug, teapot, bottle, cake, ice cream cone. Handles and spouts lie along y."""

from __future__ import annotations

import numpy as np

from datasets.zoo.kinds import Painter, kind
from datasets.zoo.primitives import capsule, cylinder, ellipsoid, lathe, torus, tube


@kind("mug", "handle", "stripe")
def mug(p: Painter) -> None:
    radius, tall, wall = p.between(0.27, 0.34), p.between(0.55, 0.72), 0.045
    foot = radius * p.between(0.78, 1.02)
    outside = [
        (foot - 0.03, 0),
        (foot, 0.03),
        (radius, tall - 0.02),
        (radius - 0.015, tall),
        (radius - wall, tall - 0.02),
    ]
    p.add(lathe([*outside, (foot - wall, 0.06), (0.0, 0.055)], sides=36))
    reach, half = p.between(0.17, 0.23), tall * p.between(0.26, 0.33)
    mid = tall * 0.52
    bow = [(0, radius * 0.9, mid + half), (0, radius + reach * 0.7, mid + half * 0.95), (0, radius + reach, mid)]
    bow += [(0, radius + reach * 0.65, mid - half * 0.95), (0, foot * 0.9, mid - half)]
    p.add(tube(bow, p.between(0.045, 0.055), smooth=5, sides=14), "handle")
    if p.part == "stripe":
        z, high = tall * 0.38, tall * 0.24
        at = [foot + (radius - foot) * k / tall + 0.012 for k in (z, z + high)]
        p.add(cylinder(at[0], high, top=at[1], sides=36).move(z=z), "stripe")


@kind("teapot", "handle", "lid", "spout")
def teapot(p: Painter) -> None:
    wide, tall = p.between(0.3, 0.35), p.between(0.42, 0.52)
    curve = [(wide * 0.6, 0), (wide * 0.68, 0.03), (wide, tall * 0.42), (wide * 0.85, tall * 0.78), (wide * 0.55, tall)]
    p.add(lathe(curve, smooth=4, sides=32))
    cover = [(wide * 0.6, 0), (wide * 0.58, 0.03), (wide * 0.35, 0.085), (0.05, 0.11)]
    p.add(lathe(cover, smooth=3, sides=28).move(z=tall - 0.015), "lid")
    p.add(ellipsoid(0.06, 0.06, 0.055, sides=16, rings=9).move(z=tall + 0.13), "lid")
    spout = [(0, wide * 0.75, tall * 0.3), (0, wide + 0.11, tall * 0.42), (0, wide + 0.18, tall * 0.72)]
    spout += [(0, wide + 0.28, tall * 0.98)]
    p.add(tube(spout, [0.095, 0.075, 0.055, 0.048], smooth=4, sides=14), "spout")
    reach = p.between(0.2, 0.26)
    bow = [(0, -wide * 0.72, tall * 0.84), (0, -wide - reach * 0.6, tall * 0.92), (0, -wide - reach, tall * 0.58)]
    bow += [(0, -wide - reach * 0.55, tall * 0.26), (0, -wide * 0.85, tall * 0.24)]
    p.add(tube(bow, 0.045, smooth=5, sides=12), "handle")


@kind("bottle", "cap", "label")
def bottle(p: Painter) -> None:
    wide, body, neck = p.between(0.17, 0.22), p.between(0.5, 0.6), p.between(0.065, 0.08)
    shoulder = p.between(0.16, 0.24)
    long = p.between(0.08, 0.16)
    p.add(cylinder(wide, body, sides=32).move(z=0.02))
    p.add(lathe([(wide - 0.03, 0), (wide, 0.03)], sides=32))
    arc = [
        (neck + (wide - neck) * (0.5 + 0.5 * np.cos(np.pi * t)), body + 0.02 + shoulder * t)
        for t in np.linspace(0, 1, 9)
    ]
    p.add(lathe([*arc, (neck, body + shoulder + long)], sides=32))
    top = body + shoulder + long
    p.add(cylinder(neck * 1.3, 0.12, bevel=0.015, sides=22).move(z=top), "cap")
    low, high = body * 0.2, body * p.between(0.5, 0.62)
    plain = "body" if p.part == "label" else "white"
    if p.part == "label" or p.chance(0.5):
        p.add(cylinder(wide + 0.01, high, sides=32).move(z=low), "label", plain=plain)


@kind("cake", "candles", "icing", "plate")
def cake(p: Painter) -> None:
    wide, tall = p.between(0.38, 0.44), p.between(0.2, 0.27)
    tiers = p.whole(1, 2)
    p.add(cylinder(wide * 1.22, 0.045, bevel=0.02, sides=36), "plate", plain="white")
    z = 0.04
    for tier in range(tiers + 1 if tiers == 2 else 1):
        if tier == 2:
            break
        radius = wide * (1 - 0.38 * tier)
        p.add(cylinder(radius, tall, bevel=0.02, sides=34).move(z=z))
        cover = cylinder(radius * 1.035, 0.07, bevel=0.03, sides=34).move(z=z + tall - 0.045)
        p.add(cover, "icing", plain="white")
        count = 12 if tier == 0 else 8
        for k in range(count):
            a = 2 * np.pi * k / count
            drop = ellipsoid(0.035, 0.05, 0.05 + 0.04 * (k % 2), sides=10, rings=7)
            p.add(
                drop.turn("z", np.degrees(a)).move(radius * np.cos(a), radius * np.sin(a), z + tall - 0.04),
                "icing",
                plain="white",
            )
        z += tall
    radius = wide * (0.62 if tiers == 2 else 1.0) * 0.6
    count = p.whole(3, 5)
    for k in range(count):
        a = 2 * np.pi * (k + 0.5) / count
        x, y = radius * np.cos(a), radius * np.sin(a)
        p.add(cylinder(0.034, 0.2, sides=12).move(x, y, z), "candles", plain="white")
        p.add(ellipsoid(0.026, 0.026, 0.045, sides=10, rings=7).move(x, y, z + 0.24), "flame", plain="orange")


@kind("ice cream cone", "cone", "cherry")
def ice_cream(p: Painter) -> None:
    wide, long, ball = p.between(0.19, 0.23), p.between(0.5, 0.62), p.between(0.23, 0.27)
    p.add(cylinder(0.03, long, top=wide, sides=28), "cone", plain="brown")
    p.add(torus(wide * 0.98, 0.032, sides=28, around=10).move(z=long - 0.02), "cone", plain="brown")
    count = p.whole(1, 3)
    z = long + ball * 0.55
    for k in range(count):
        size = ball * (1 - 0.12 * k)
        p.add(ellipsoid(size, size, size * 0.92, sides=26, rings=15).move(z=z))
        for j in range(9):
            a = 2 * np.pi * j / 9 + k
            frill = ellipsoid(size * 0.32, size * 0.34, size * 0.2, sides=10, rings=7)
            p.add(frill.move(size * 0.82 * np.cos(a), size * 0.82 * np.sin(a), z - size * 0.5))
        z += size * 1.15
    top = z - ball * (1 - 0.12 * (count - 1)) * 1.15 + ball * (1 - 0.12 * (count - 1)) * 0.92
    if p.part == "cherry":
        p.add(ellipsoid(0.085, 0.085, 0.085, sides=18, rings=11).move(z=top + 0.05), "cherry")
    else:
        p.add(capsule(0.36, 0.04, sides=12).turn("x", -28).move(0, ball * 0.3, top - 0.14), "wafer", plain="brown")
