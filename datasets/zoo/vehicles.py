"""Vehicles: car, truck, airplane, sailboat, rocket, train. All drive or fly along +x."""

from __future__ import annotations

import numpy as np

from datasets.zoo.kinds import Painter, kind
from datasets.zoo.primitives import box, cylinder, ellipsoid, lathe, loft, prism, torus


def _wheels(p: Painter, xs: list[float], y: float, radius: float, *, width: float = 0.1) -> None:
    for x in xs:
        for side in (-1, 1):
            tire = cylinder(radius, width, bevel=0.025, sides=22).move(z=-width / 2).turn("x", 90)
            p.add(tire.move(x, side * y, radius), "wheels", plain="black")
            hub = cylinder(radius * 0.45, width + 0.02, bevel=0.01, sides=14).move(z=-width / 2 - 0.01).turn("x", 90)
            p.add(hub.move(x, side * y, radius), "hub", plain="gray")


@kind("car", "wheels", "roof")
def car(p: Painter) -> None:
    length, width, wheel = p.between(0.95, 1.15), p.between(0.44, 0.5), p.between(0.105, 0.135)
    low, cabin = p.between(0.19, 0.23), p.between(0.17, 0.22)
    p.add(box(length, width, low, bevel=0.07).move(z=wheel * 0.75))
    z = wheel * 0.75 + low - 0.02
    span = p.between(0.5, 0.62) * length
    x = -p.between(0.02, 0.1)
    p.add(box(span, width * 0.93, cabin, bevel=0.03, top=(0.68, 0.84)).move(x=x, z=z), "windows", plain="black")
    p.add(box(span * 0.72, width * 0.83, 0.06, bevel=0.028).move(x=x, z=z + cabin - 0.03), "roof")
    for at in (-0.36, 0.0, 0.36):  # pillars
        for side in (-1, 1):
            post = box(0.05, 0.04, cabin, bevel=0.012).turn("x", side * 8).turn("y", -at * 65)
            p.add(post.move(x + at * span * 1.15, side * width * 0.43, z), "roof")
    _wheels(p, [-length * 0.31, length * 0.31], width / 2 - 0.03, wheel)
    for side in (-1, 1):
        lamp = ellipsoid(0.03, 0.05, 0.04, sides=12, rings=7)
        p.add(lamp.move(length / 2 - 0.01, side * width * 0.32, wheel * 0.75 + low * 0.6), "lights", plain="yellow")
        tail = lamp.move(-length / 2 + 0.01, side * width * 0.32, wheel * 0.75 + low * 0.6)
        p.add(tail, "rear lights", plain="red")


@kind("truck", "wheels", "cab")
def truck(p: Painter) -> None:
    width, wheel, load = p.between(0.38, 0.44), p.between(0.095, 0.115), p.between(0.62, 0.8)
    tall, cab = p.between(0.36, 0.46), p.between(0.26, 0.32)
    total = load + cab + 0.04
    rear = -total / 2
    z = wheel * 1.15
    p.add(box(total, width * 0.7, 0.07, bevel=0.02).move(z=z - 0.04), "chassis", plain="gray")
    p.add(box(load, width, tall, bevel=0.025).move(x=rear + load / 2, z=z + 0.02), "cargo box")
    x = total / 2 - cab / 2
    high = tall * p.between(0.68, 0.85)
    p.add(box(cab, width * 0.96, high, bevel=0.05, top=(0.82, 0.95)).move(x=x, z=z - 0.02), "cab")
    glass = box(0.04, width * 0.78, high * 0.36, bevel=0.015).turn("y", -6)
    p.add(glass.move(x=x + cab / 2 - 0.035, z=z + high * 0.52), "windows", plain="black")
    for side in (-1, 1):
        pane = box(cab * 0.5, 0.03, high * 0.32, bevel=0.012)
        p.add(pane.move(x, side * width * 0.462, z + high * 0.52), "windows", plain="black")
        lamp = ellipsoid(0.025, 0.04, 0.035, sides=12, rings=7)
        p.add(lamp.move(x + cab / 2, side * width * 0.33, z + 0.08), "lights", plain="yellow")
    _wheels(p, [rear + 0.14, rear + 0.14 + 2.2 * wheel, total / 2 - 0.14], width / 2 - 0.03, wheel)


@kind("airplane", "wings", "tail", "engines")
def airplane(p: Painter) -> None:
    length, radius = p.between(1.0, 1.15), p.between(0.1, 0.13)
    profile = [(0.0, 0), (0.35, 0.06), (0.8, 0.25), (1.0, 0.45), (1.0, 0.8), (0.8, 0.92), (0.45, 0.98), (0.0, 1.0)]
    hull = lathe([(r * radius, z * length) for r, z in profile], smooth=2, sides=22)
    p.add(hull.turn("y", 90).move(x=-length / 2))
    span, chord, sweep = p.between(0.46, 0.58), p.between(0.22, 0.3), p.between(0.08, 0.26)
    z = -radius * 0.3
    for side in (-1, 1):
        p.add(_wing(span, chord, sweep, 0.06).stretch(y=side).move(x=0.08, y=side * radius * 0.5, z=z), "wings")
        flat = _wing(0.22, 0.16, 0.08, 0.05).stretch(y=side).move(x=-length / 2 + 0.12, y=side * 0.02, z=radius * 0.35)
        p.add(flat, "tail")
        if p.part == "engines" or length > 1.1:
            pod = cylinder(0.055, 0.2, bevel=0.02, sides=16).turn("y", 90)
            p.add(pod.move(0.02 - sweep * 0.45, side * span * 0.5, z - 0.07), "engines", plain="gray")
    fin = [(0.0, 0.0), (0.19, 0.0), (0.05, 0.24), (-0.06, 0.24)]
    p.add(prism(fin, 0.055).move(x=-length / 2 + 0.04, z=radius * 0.4), "tail")
    screen = ellipsoid(0.07, 0.06, 0.05, sides=14, rings=9)
    p.add(screen.move(length * 0.36, 0, radius * 0.62), "cockpit", plain="black")


def _wing(span: float, chord: float, sweep: float, thick: float):
    """Half a wing from y = 0 to the left, with a rounded profile."""
    angle = 2 * np.pi * np.arange(14) / 14
    rings = []
    for t in (0.0, 0.5, 0.95, 1.0):
        c = chord * (1 - 0.55 * t) * (1.0 if t < 1 else 0.8)
        h = thick * (1 - 0.4 * t) * (1.0 if t < 1 else 0.5)
        x = -sweep * t + c / 2 * np.cos(angle)
        rings.append(np.column_stack([x, np.full(14, span * t), -h / 2 * np.sin(angle)]))
    return loft(np.stack(rings))


@kind("sailboat", "sails", "mast")
def sailboat(p: Painter) -> None:
    length, width, deep = p.between(0.85, 1.05), p.between(0.26, 0.34), p.between(0.15, 0.2)
    p.add(_hull(length, width, deep))
    p.add(_hull(length * 0.92, width * 0.84, 0.05).move(z=deep - 0.035), "deck", plain="brown")
    tall, at = p.between(0.85, 1.05), p.between(-0.02, 0.06)
    p.add(cylinder(0.03, tall, top=0.022, sides=12).move(x=at, z=deep - 0.02), "mast", plain="brown")
    foot, top = deep + 0.1, deep + tall * 0.94
    boom = length * 0.42
    p.add(prism([(at - 0.035, foot), (at - 0.035, top), (at - boom, foot + 0.02)][::-1], 0.045), "sails", plain="white")
    if p.chance(0.75):
        jib = [(at + 0.05, foot - 0.03), (length * 0.42, foot - 0.04), (at + 0.05, top * 0.82)]
        p.add(prism(jib, 0.045), "sails", plain="white")
    beam = cylinder(0.024, boom, sides=10).turn("y", -90)
    p.add(beam.move(x=at, z=foot - 0.03), "mast", plain="brown")


def _hull(length: float, width: float, deep: float):
    """A pointed boat, bow at +x, from its keel at z = 0 up to its rim."""
    s = np.linspace(0, 1, 15)
    half = np.concatenate([np.column_stack([s, np.minimum(1.6 * (1 - s**2.2), 1.0)])])
    rim = np.concatenate([half, (half * [1, -1])[::-1][1:]])
    stern = np.column_stack([np.full(3, -0.0), np.linspace(-1, 1, 5)[1:-1]])
    outline = np.concatenate([rim, stern]) * [length, width / 2] - [length / 2, 0]
    area = np.sum(outline[:, 0] * np.roll(outline[:, 1], -1) - outline[:, 1] * np.roll(outline[:, 0], -1))
    outline = outline if area > 0 else outline[::-1]
    rings = [
        np.column_stack([outline * k, np.full(len(outline), z)])
        for k, z in ((0.55, 0), (0.75, 0.12 * deep), (0.9, 0.45 * deep), (0.99, 0.9 * deep), (1.0, deep), (0.96, deep))
    ]
    return loft(np.stack(rings))


@kind("rocket", "nose", "fins")
def rocket(p: Painter) -> None:
    radius, tall = p.between(0.14, 0.19), p.between(0.62, 0.8)
    nose = p.between(0.24, 0.36)
    p.add(lathe([(radius * 0.72, 0.08), (radius * 0.92, 0.2), (radius, tall * 0.55), (radius * 0.94, tall)], smooth=4))
    tip = [(radius * 0.94, 0), (radius * 0.78, nose * 0.4), (radius * 0.42, nose * 0.8), (0.0, nose)]
    p.add(lathe(tip, smooth=4).move(z=tall), "nose")
    p.add(cylinder(radius * 0.62, 0.1, top=radius * 0.5, sides=22), "nozzle", plain="gray")
    count, out = p.whole(3, 4), p.between(0.16, 0.24)
    fin = [(radius * 0.6, 0.1), (radius + out, -0.04), (radius + out, 0.1), (radius * 0.9, 0.36)]
    for k in range(count):
        p.add(prism(fin, 0.055).turn("z", 180 + 360 * k / count), "fins")
    eye = tall * p.between(0.66, 0.78)
    p.add(torus(0.062, 0.02, sides=20, around=8).turn("y", 90).move(x=radius * 0.97, z=eye), "rim", plain="gray")
    pane = ellipsoid(0.03, 0.062, 0.062, sides=16, rings=9)
    p.add(pane.move(x=radius * 0.96, z=eye), "window", plain="black")


@kind("train", "wheels", "chimney", "cab")
def train(p: Painter) -> None:
    length, radius, wheel = p.between(0.62, 0.75), p.between(0.15, 0.18), p.between(0.09, 0.12)
    base = wheel * 1.3
    p.add(box(length + 0.34, 0.36, 0.09, bevel=0.025).move(x=-0.05, z=base - 0.03), "frame", plain="gray")
    boiler = cylinder(radius, length, bevel=0.035, sides=26).turn("y", 90)
    p.add(boiler.move(x=-length / 2 + 0.08, z=base + radius + 0.04))
    front = length / 2 + 0.08
    p.add(cylinder(radius * 0.55, 0.05, bevel=0.02, sides=18).turn("y", 90).move(front - 0.02, 0, base + radius + 0.04))
    tall = p.between(0.2, 0.3)
    funnel = lathe([(0.06, 0), (0.055, tall * 0.5), (0.095, tall * 0.8), (0.1, tall), (0.06, tall)], sides=18)
    p.add(funnel.move(x=front - 0.14, z=base + 2 * radius), "chimney")
    p.add(ellipsoid(0.07, 0.07, 0.08, sides=14, rings=9).move(x=0.02, z=base + 2 * radius + 0.04), "dome")
    x, high = -length / 2 - 0.03, p.between(0.42, 0.5)
    p.add(box(0.28, 0.38, high, bevel=0.02).move(x=x, z=base), "cab")
    p.add(box(0.36, 0.46, 0.05, bevel=0.022).move(x=x, z=base + high), "cab")
    for side in (-1, 1):
        pane = box(0.15, 0.03, 0.14, bevel=0.012)
        p.add(pane.move(x, side * 0.185, base + high - 0.2), "windows", plain="black")
    _wheels(p, [-length / 2 - 0.03, -0.08, length / 2 - 0.1], 0.17, wheel, width=0.07)
    guard = prism([(0.0, 0.0), (0.16, 0.0), (0.0, 0.14)], 0.32).move(x=front - 0.06, z=0.02)
    p.add(guard, "guard", plain="gray")
