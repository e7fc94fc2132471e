"""Toys: teddy bear, robot, snowman, drum, gift box."""

from __future__ import annotations

import numpy as np

from datasets.zoo.kinds import Painter, kind
from datasets.zoo.primitives import box, capsule, cylinder, ellipsoid, lathe, torus, tube


def eyes(p: Painter, x: float, y: float, z: float, size: float, *, plain: str = "black") -> None:
    """Two eyes on a face that looks along +x."""
    for side in (-1, 1):
        p.add(ellipsoid(size * 0.7, size, size, sides=12, rings=7).move(x, side * y, z), "eyes", plain=plain)


@kind("teddy bear", "ears", "belly", "scarf")
def teddy_bear(p: Painter) -> None:
    fat, head = p.between(0.25, 0.3), p.between(0.22, 0.26)
    p.add(ellipsoid(fat * 0.88, fat, 0.31).move(z=0.36))
    p.add(ellipsoid(fat * 0.4, fat * 0.68, 0.21, sides=18).move(x=fat * 0.56, z=0.35), "belly")
    z = 0.36 + 0.29 + head * 0.7
    p.add(ellipsoid(head * 0.92, head * 1.05, head).move(z=z))
    for side in (-1, 1):
        ear = ellipsoid(0.05, 0.1, 0.1, sides=16, rings=11)
        p.add(ear.move(y=side * head * 0.8, z=z + head * 0.78), "ears")
        leg = ellipsoid(0.2, 0.115, 0.115, sides=16, rings=11).turn("z", side * 22)
        p.add(leg.move(fat * 0.75, side * fat * 0.72, 0.13))
        arm = ellipsoid(0.095, 0.095, 0.2, sides=16, rings=11).turn("x", side * p.between(25, 50))
        p.add(arm.move(0.06, side * fat * 1.05, 0.45))
    p.add(ellipsoid(0.1, 0.11, 0.085, sides=16, rings=9).move(head * 0.82, 0, z - 0.06), "muzzle", plain="white")
    p.add(ellipsoid(0.035, 0.05, 0.035, sides=12, rings=7).move(head * 0.82 + 0.09, 0, z - 0.02), "nose", plain="black")
    eyes(p, head * 0.83, 0.09, z + 0.07, 0.034)
    if p.part == "scarf":
        p.add(torus(0.17, 0.055, around=12).stretch(z=0.9).move(z=z - head * 0.85), "scarf")
        p.add(box(0.06, 0.1, 0.24, bevel=0.025).turn("y", -14).move(fat * 0.72, 0.1, z - head - 0.2), "scarf")


@kind("robot", "head", "arms", "legs")
def robot(p: Painter) -> None:
    width, tall = p.between(0.38, 0.46), p.between(0.38, 0.46)
    leg = p.between(0.2, 0.28)
    for side in (-1, 1):
        p.add(cylinder(0.06, leg, sides=14).move(y=side * width * 0.26, z=0.05), "legs")
        p.add(box(0.24, 0.15, 0.09, bevel=0.035).move(x=0.03, y=side * width * 0.26), "legs")
        p.add(ellipsoid(0.08, 0.08, 0.08, sides=14, rings=9).move(y=side * (width / 2 + 0.03), z=leg + tall - 0.04))
        swing = p.between(4, 14)
        p.add(
            capsule(0.34, 0.055).turn("x", 180 + side * swing).move(y=side * (width / 2 + 0.06), z=leg + tall), "arms"
        )
        hand = ellipsoid(0.08, 0.075, 0.08, sides=14, rings=9)
        p.add(hand.move(0.02, side * (width / 2 + 0.065 + 0.34 * np.sin(np.radians(swing))), leg + tall - 0.35), "arms")
    p.add(box(0.28, width, tall, bevel=0.05).move(z=leg))
    p.add(box(0.03, width * 0.6, tall * 0.42, bevel=0.012).move(x=0.14, z=leg + tall * 0.3), "panel", plain="gray")
    for k, name in enumerate(("red", "yellow", "green")):
        light = ellipsoid(0.025, 0.036, 0.036, sides=12, rings=7)
        p.add(light.move(0.155, (k - 1) * width * 0.18, leg + tall * 0.52), "light", plain=name)
    z = leg + tall + 0.03
    high = p.between(0.22, 0.28)
    p.add(cylinder(0.07, 0.06, sides=14).move(z=z - 0.05), "neck", plain="gray")
    p.add(box(0.25, width * 0.74, high, bevel=0.05).move(z=z), "head")
    eyes(p, 0.125, width * 0.18, z + high * 0.58, 0.05, plain="white")
    eyes(p, 0.155, width * 0.18, z + high * 0.58, 0.026)
    p.add(box(0.03, width * 0.38, 0.035, bevel=0.01).move(x=0.12, z=z + high * 0.17), "mouth", plain="black")
    p.add(cylinder(0.02, 0.12, sides=10).move(z=z + high - 0.01), "antenna", plain="gray")
    p.add(ellipsoid(0.045, 0.045, 0.045, sides=14, rings=9).move(z=z + high + 0.13), "antenna", plain="red")


@kind("snowman", "hat", "scarf")
def snowman(p: Painter) -> None:
    low, mid, top = p.between(0.27, 0.31), p.between(0.2, 0.23), p.between(0.155, 0.18)
    z_mid = low * 1.75 + mid * 0.6
    z_top = z_mid + mid * 0.8 + top * 0.75
    p.add(ellipsoid(low, low, low * 0.92).move(z=low * 0.9))
    p.add(ellipsoid(mid, mid, mid * 0.95).move(z=z_mid))
    p.add(ellipsoid(top, top, top).move(z=z_top))
    nose = cylinder(0.038, 0.17, top=0.008, sides=12).turn("y", 92)
    p.add(nose.move(top * 0.9, 0, z_top), "nose", plain="orange")
    eyes(p, top * 0.9, 0.065, z_top + 0.06, 0.026)
    for k in range(3):
        z = z_mid + 0.1 - 0.13 * k
        x = mid * 0.97 if k < 2 else low * 0.72
        p.add(ellipsoid(0.025, 0.03, 0.03, sides=12, rings=7).move(x=x, z=z), "buttons", plain="black")
    p.add(torus(top * 0.82, 0.05, around=12).move(z=z_top - top * 0.82), "scarf")
    p.add(box(0.055, 0.09, 0.24, bevel=0.025).turn("y", -8).move(mid * 0.85, 0.1, z_mid - 0.1), "scarf")
    brim = z_top + top * 0.7
    p.add(cylinder(top * 1.25, 0.04, bevel=0.018, sides=26).move(z=brim), "hat", plain="black")
    tall = p.between(0.17, 0.25)
    p.add(cylinder(top * 0.8, tall, bevel=0.025, sides=26).move(z=brim + 0.02), "hat", plain="black")
    for side in (-1, 1):
        arm = capsule(0.3, 0.026, sides=10).turn("x", -side * p.between(50, 65))
        p.add(arm.move(y=side * mid * 0.85, z=z_mid + 0.02), "arms", plain="brown")


@kind("drum", "rims", "cords")
def drum(p: Painter) -> None:
    radius, tall = p.between(0.36, 0.42), p.between(0.4, 0.58)
    p.add(cylinder(radius, tall, sides=36))
    for z in (0.03, tall - 0.02):
        p.add(torus(radius, 0.042, sides=36, around=10).stretch(z=1.1).move(z=z), "rims")
    p.add(lathe([(radius, 0), (radius * 0.97, 0.02), (0.0, 0.025)], sides=36).move(z=tall), "top", plain="white")
    count = p.whole(5, 7)
    for k in range(2 * count):  # cords that zigzag between the rims
        low, high = np.pi * k / count, np.pi * (k + 1) / count
        start, end = (0.06, tall - 0.06) if k % 2 == 0 else (tall - 0.06, 0.06)
        steps = [(low + (high - low) * t, start + (end - start) * t) for t in np.linspace(0, 1, 5)]
        path = np.array([((radius + 0.008) * np.cos(a), (radius + 0.008) * np.sin(a), z) for a, z in steps])
        p.add(tube(path, 0.024, sides=7), "cords", plain="white")
    for side in (-1, 1):
        stick = (
            capsule(0.6, 0.03, sides=10).turn("y", 90).turn("z", 90 + side * 24).move(side * 0.16, -0.3, tall + 0.06)
        )
        p.add(stick, "sticks", plain="brown")


@kind("gift box", "ribbon", "lid")
def gift_box(p: Painter) -> None:
    x, y, tall = p.between(0.5, 0.62), p.between(0.5, 0.62), p.between(0.36, 0.55)
    wide = p.between(0.09, 0.12)
    p.add(box(x, y, tall, bevel=0.018))
    p.add(box(x + 0.06, y + 0.06, 0.13, bevel=0.018).move(z=tall - 0.05), "lid")
    plain = "body" if p.part == "ribbon" else "white"
    top = tall + 0.08
    p.add(box(x + 0.02, wide, tall, bevel=0.008), "ribbon", plain=plain)
    p.add(box(wide, y + 0.02, tall, bevel=0.008), "ribbon", plain=plain)
    p.add(box(x + 0.08, wide, 0.15, bevel=0.008).move(z=tall - 0.055), "ribbon", plain=plain)
    p.add(box(wide, y + 0.08, 0.15, bevel=0.008).move(z=tall - 0.055), "ribbon", plain=plain)
    for side in (-1, 1):
        loop = torus(0.11, 0.036, sides=20).stretch(x=1.0, y=0.75, z=1.5).turn("x", 90).turn("y", side * 28)
        p.add(loop.turn("z", 90).move(y=side * 0.12, z=top + 0.07), "ribbon", plain=plain)
    p.add(ellipsoid(0.07, 0.07, 0.06, sides=14, rings=9).move(z=top + 0.03), "ribbon", plain=plain)
