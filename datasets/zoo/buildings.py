"""Buildings: house, castle, windmill, lighthouse. Their doors look along +x."""

from __future__ import annotations

import numpy as np

from datasets.zoo.kinds import Painter, kind
from datasets.zoo.primitives import box, cylinder, ellipsoid, lathe, prism


@kind("house", "roof", "door", "chimney")
def house(p: Painter) -> None:
    x, y, wall = p.between(0.55, 0.75), p.between(0.6, 0.8), p.between(0.36, 0.46)
    rise, over = p.between(0.26, 0.38), 0.06
    p.add(box(x, y, wall, bevel=0.012))
    p.add(prism([(-x / 2, wall - 0.02), (x / 2, wall - 0.02), (0, wall + rise - 0.04)], y - 0.02).move(z=0), "gable")
    slope = np.degrees(np.arctan2(rise, x / 2))
    long = np.hypot(x / 2, rise) + over * 1.4
    for side in (-1, 1):
        slab = box(long, y + 2 * over, 0.06, bevel=0.015).move(x=-long / 2).stretch(x=-side)
        p.add(slab.turn("y", side * slope).move(z=wall + rise - 0.015), "roof")
    p.add(box(0.05, 0.17, wall * 0.62, bevel=0.012).move(x=x / 2), "door", plain="brown")
    for side in (-1, 1):
        for face in (-1, 1):
            frame = box(0.03, 0.16, 0.16, bevel=0.01).move(face * x / 2, side * y * 0.3, wall * 0.42)
            p.add(frame, "frames", plain="white")
            pane = box(0.045, 0.11, 0.11, bevel=0.008).move(face * x / 2, side * y * 0.3, wall * 0.42 + 0.025)
            p.add(pane, "windows", plain="cyan")
        pane = box(0.15, 0.03, 0.15, bevel=0.01).move(0, side * y / 2, wall * 0.45)
        p.add(pane, "windows", plain="cyan")
    if p.part == "chimney" or p.chance(0.5):
        p.add(box(0.11, 0.11, rise + 0.1, bevel=0.012).move(x=-x * 0.2, y=y * 0.25, z=wall + 0.04), "chimney")
        p.add(box(0.14, 0.14, 0.05, bevel=0.012).move(x=-x * 0.2, y=y * 0.25, z=wall + rise + 0.12), "chimney")


@kind("castle", "roofs", "gate", "flag")
def castle(p: Painter) -> None:
    half, wall, tower = p.between(0.34, 0.4), p.between(0.26, 0.34), p.between(0.11, 0.14)
    tall, roof = wall + p.between(0.12, 0.2), p.between(0.2, 0.28)
    for sx in (-1, 1):
        for sy in (-1, 1):
            p.add(cylinder(tower, tall, sides=20).move(sx * half, sy * half))
            p.add(cylinder(tower * 1.18, 0.06, bevel=0.015, sides=20).move(sx * half, sy * half, tall - 0.02))
            p.add(cylinder(tower * 1.15, roof, top=0.0, sides=20).move(sx * half, sy * half, tall + 0.035), "roofs")
    for k in range(4):
        p.add(box(0.1, 2 * half, wall, bevel=0.01).move(x=half).turn("z", 90 * k))
        for j in range(4):
            merlon = box(0.1, 0.07, 0.07, bevel=0.01).move(half, (j - 1.5) * half * 0.38, wall - 0.01)
            p.add(merlon.turn("z", 90 * k))
    keep, high = half * p.between(0.75, 0.9), tall + p.between(0.02, 0.12)
    p.add(box(keep, keep, high, bevel=0.012))
    if p.part == "flag":
        top = high + 0.05
        p.add(box(keep * 1.1, keep * 1.1, 0.06, bevel=0.012).move(z=high - 0.01))
        p.add(cylinder(0.024, 0.42, sides=10).move(z=top - 0.02), "pole", plain="gray")
        p.add(box(0.05, 0.26, 0.17, bevel=0.015).move(y=0.13, z=top + 0.22), "flag")
    else:
        p.add(cylinder(keep * 0.78, roof * 1.1, top=0.0, sides=4).turn("z", 45).move(z=high - 0.005), "roofs")
    arch = 0.12
    p.add(box(0.05, 2 * arch, wall * 0.5, bevel=0.012).move(x=half + 0.045), "gate", plain="brown")
    p.add(cylinder(arch, 0.05, sides=24).turn("y", 90).move(x=half + 0.02, z=wall * 0.5), "gate", plain="brown")


@kind("windmill", "blades", "roof", "door")
def windmill(p: Painter) -> None:
    foot, neck, tall = p.between(0.24, 0.29), p.between(0.15, 0.18), p.between(0.62, 0.72)
    p.add(cylinder(foot, tall, top=neck, bevel=0.015, sides=p.whole(6, 9) * 2))
    p.add(
        lathe([(neck * 1.2, 0), (neck * 1.2, 0.03), (neck * 0.75, 0.14), (0.0, 0.21)], smooth=3).move(z=tall - 0.01),
        "roof",
    )
    hub_x, hub_z = neck + 0.1, tall - 0.02
    p.add(cylinder(0.05, 0.2, bevel=0.015, sides=16).turn("y", 90).move(neck * 0.6, 0, hub_z), "hub", plain="gray")
    long, wide = p.between(0.42, 0.5), p.between(0.13, 0.16)
    turn = p.between(0, 90)
    for k in range(4):
        vane = box(0.045, wide, long - 0.08, bevel=0.015).move(y=wide * 0.25, z=0.08)
        spar = box(0.055, 0.05, long, bevel=0.015)
        for piece in (vane, spar):
            p.add(piece.turn("x", turn + 90 * k).move(x=hub_x, z=hub_z), "blades", plain="white")
    p.add(box(0.06, 0.15, 0.23, bevel=0.015).turn("y", -5).move(x=foot - 0.03), "door", plain="brown")
    for k in (1, 2, 3):
        pane = box(0.04, 0.09, 0.11, bevel=0.012).turn("y", -8).move(x=foot * 0.5 + neck * 0.5 - 0.015, z=tall * 0.45)
        p.add(pane.turn("z", 90 * k), "windows", plain="black")


@kind("lighthouse", "stripes", "roof")
def lighthouse(p: Painter) -> None:
    foot, neck, tall = p.between(0.17, 0.21), p.between(0.105, 0.13), p.between(0.66, 0.78)
    p.add(cylinder(foot * 1.4, 0.07, bevel=0.02, sides=28), "ground", plain="gray")
    bands = 5 if p.part == "stripes" else 1
    for k in range(bands):
        low, high = foot + (neck - foot) * k / bands, foot + (neck - foot) * (k + 1) / bands
        label = "stripes" if k % 2 else "body"
        p.add(cylinder(low, tall / bands, top=high, sides=28).move(z=0.06 + tall * k / bands), label)
    z = 0.06 + tall
    p.add(cylinder(neck * 1.5, 0.045, bevel=0.015, sides=28).move(z=z), "gallery", plain="gray")
    p.add(cylinder(neck * 0.72, 0.15, sides=20).move(z=z + 0.04), "lantern", plain="yellow")
    for k in range(6):
        p.add(
            box(0.03, 0.03, 0.15, bevel=0.008).move(x=neck * 0.78, z=z + 0.04).turn("z", 60 * k), "bars", plain="black"
        )
    p.add(cylinder(neck * 1.15, 0.15, top=0.012, sides=24).move(z=z + 0.18), "roof")
    p.add(ellipsoid(0.035, 0.035, 0.035, sides=12, rings=7).move(z=z + 0.34), "roof")
    p.add(box(0.06, 0.12, 0.18, bevel=0.015).move(x=foot - 0.03, z=0.06), "door", plain="brown")
