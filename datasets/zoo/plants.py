"""Plants: tree, pine tree, cactus, flower, mushroom."""

from __future__ import annotations

import numpy as np

from datasets.zoo.kinds import Painter, kind
from datasets.zoo.primitives import capsule, cylinder, ellipsoid, lathe, torus, tube


def pot(p: Painter, radius: float, height: float, *, plain: str = "brown") -> None:
    """A flower pot with earth in it."""
    p.add(cylinder(radius * 0.72, height, top=radius * 0.95, bevel=0.02, sides=26), "pot", plain=plain)
    p.add(cylinder(radius, height * 0.28, bevel=0.02, sides=26).move(z=height * 0.75), "pot", plain=plain)
    p.add(cylinder(radius * 0.86, 0.03, sides=22).move(z=height), "earth", plain="brown")


@kind("tree", "trunk", "apples")
def tree(p: Painter) -> None:
    tall, thick = p.between(0.38, 0.52), p.between(0.065, 0.09)
    p.add(
        lathe([(thick * 1.7, 0), (thick * 1.1, 0.07), (thick, tall * 0.6), (thick * 0.8, tall + 0.1)], smooth=3),
        "trunk",
        plain="brown",
    )
    crown = p.between(0.25, 0.3)
    blobs = [(np.array([0.0, 0.0, tall + crown * 1.0]), crown * 1.12)]
    count = p.whole(4, 5)
    start = p.between(0, 360)
    for k in range(count):
        a = np.radians(start + 360 * k / count)
        out = crown * p.between(0.7, 0.85)
        centre = np.array([out * np.cos(a), out * np.sin(a), tall + crown * p.between(0.45, 0.75)])
        blobs.append((centre, crown * p.between(0.68, 0.8)))
    for centre, radius in blobs:
        p.add(ellipsoid(radius, radius, radius * 0.92, sides=18, rings=11).move(*centre))
    if p.part == "apples":
        for centre, radius in blobs:
            for k in range(3):
                a, e = p.between(0, 2 * np.pi), np.radians(20 + 22 * k)
                away = np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
                spot = centre + radius * 0.98 * away
                if all(np.linalg.norm(spot - c) >= 0.97 * r for c, r in blobs):
                    p.add(ellipsoid(0.055, 0.055, 0.055, sides=12, rings=7).move(*spot), "apples")
        for k in range(6):
            a = np.radians(60 * k + 30)
            spot = (crown * 0.98 * np.cos(a), crown * 0.98 * np.sin(a), tall + crown * 1.45)
            p.add(ellipsoid(0.055, 0.055, 0.055, sides=12, rings=7).move(*spot), "apples")


@kind("pine tree", "trunk", "star", "balls")
def pine_tree(p: Painter) -> None:
    wide, tiers, step = p.between(0.32, 0.4), p.whole(3, 4), p.between(0.2, 0.25)
    p.add(cylinder(0.085, 0.26, top=0.075, sides=16), "trunk", plain="brown")
    for k in range(tiers):
        radius = wide * (1 - 0.23 * k)
        tier = [(radius * 0.3, 0.03), (radius, 0.0), (radius * 0.98, 0.03), (radius * 0.25, step * 1.55)]
        p.add(lathe(tier, sides=26).move(z=0.2 + step * k))
    top = 0.2 + step * (tiers - 1) + wide * 0.0 + step * 1.55
    p.add(cylinder(wide * (1 - 0.23 * (tiers - 1)) * 0.25, 0.1, top=0.0, sides=22).move(z=top))
    if p.part == "star":
        for k in range(5):
            ray = cylinder(0.05, 0.13, top=0.006, sides=8).stretch(x=0.6).turn("x", 72 * k)
            p.add(ray.move(z=top + 0.1), "star")
    if p.part == "balls":
        for k in range(tiers):
            radius = wide * (1 - 0.23 * k)
            count = 7 - k
            for j in range(count):
                a = 2 * np.pi * (j + 0.5 * k) / count
                ball = ellipsoid(0.05, 0.05, 0.05, sides=12, rings=7)
                p.add(ball.move(radius * np.cos(a), radius * np.sin(a), 0.2 + step * k + 0.01), "balls")


@kind("cactus", "pot", "flower")
def cactus(p: Painter) -> None:
    tall, thick = p.between(0.6, 0.75), p.between(0.1, 0.125)
    pot(p, p.between(0.22, 0.26), 0.24)
    p.add(capsule(tall, thick, sides=20).move(z=0.2))
    for side in (-1, 1) if p.chance(0.75) else (1,):
        z, out, up = 0.2 + tall * p.between(0.35, 0.55), p.between(0.2, 0.26), p.between(0.14, 0.26)
        y = side * out
        path = [(0, 0, z), (0, y * 0.7, z), (0, y * 0.97, z + 0.06), (0, y, z + up * 0.6), (0, y, z + up)]
        arm = thick * 0.62
        p.add(tube(path, arm, smooth=4, sides=16))
        p.add(ellipsoid(arm, arm, arm, sides=16, rings=9).move(0, y, z + up))
    for k in range(8):
        rib = capsule(tall * 0.92, 0.024, sides=6).move(x=thick * 0.95, z=0.2).turn("z", 45 * k + 22.5)
        p.add(rib)
    if p.part == "flower":
        for k in range(6):
            petal = ellipsoid(0.1, 0.055, 0.035, sides=12, rings=7).turn("y", -35).move(x=0.09).turn("z", 60 * k)
            p.add(petal.move(z=0.2 + tall + 0.03), "flower")


@kind("flower", "center", "stem", "leaves")
def flower(p: Painter) -> None:
    tall, count = p.between(0.6, 0.72), p.whole(6, 9)
    core, petal = p.between(0.095, 0.125), p.between(0.2, 0.25)
    p.add(tube([(0, 0, 0), (0, 0.025, tall * 0.5), (0, 0, tall)], 0.036, smooth=5, sides=12), "stem", plain="green")
    for side in (-1, 1):
        leaf = ellipsoid(0.05, 0.18, 0.032, sides=16, rings=11).turn("y", -30)
        leaf = leaf.move(y=side * 0.16).turn("x", side * 28).move(z=tall * (0.22 if side < 0 else 0.32))
        p.add(leaf, "leaves", plain="green")
    width = min(np.pi * (core + petal * 0.7) / count * 1.12, 0.16)
    for k in range(count):
        leaf = ellipsoid(0.04, width, petal * 0.75, sides=14, rings=9).turn("y", 14).move(z=core + petal * 0.5)
        p.add(leaf.turn("x", 360 * k / count).move(x=0.04, z=tall + 0.05))
    center = ellipsoid(0.075, core * 1.08, core * 1.08, sides=20, rings=11).move(x=0.045, z=tall + 0.05)
    p.add(center, "center", plain="yellow")


@kind("mushroom", "stem", "spots")
def mushroom(p: Painter) -> None:
    tall, wide, cap = p.between(0.4, 0.52), p.between(0.42, 0.52), p.between(0.28, 0.38)
    foot = p.between(0.13, 0.17)
    p.add(
        lathe([(foot * 0.9, 0), (foot * 1.15, 0.07), (foot * 0.85, tall * 0.6), (foot, tall + 0.05)], smooth=4),
        "stem",
        plain="white",
    )
    dome = [(wide * 0.5, 0.0), (wide * 0.96, -0.02), (wide, 0.045)]
    dome += [(wide * np.cos(a), 0.045 + (cap - 0.045) * np.sin(a)) for a in np.radians([15, 30, 45, 60, 75, 90])]
    p.add(lathe(dome, sides=32).move(z=tall))
    p.add(torus(foot * 1.02, 0.028, around=8).move(z=tall * 0.72), "ring", plain="white")
    rows = ((22, 7, 0.062), (50, 5, 0.06), (90, 1, 0.072))
    turn = p.between(0, 60)
    for height_deg, count, size in rows:
        e = np.radians(height_deg)
        for k in range(count):
            a = np.radians(turn + height_deg + 360 * k / count)
            x, z = wide * np.cos(e), 0.045 + (cap - 0.045) * np.sin(e)
            spot = ellipsoid(size, size, 0.03, sides=14, rings=7).turn(
                "y", np.degrees(np.arctan2(x / wide**2, z / cap**2))
            )
            plain = "body" if p.part == "spots" else "white"
            p.add(spot.move(x=x, z=z).turn("z", np.degrees(a)).move(z=tall), "spots", plain=plain)
