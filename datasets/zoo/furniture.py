"""Furniture: chair, table, sofa, lamp."""

from __future__ import annotations

from datasets.zoo.kinds import Painter, kind
from datasets.zoo.primitives import box, capsule, cylinder, lathe, torus


def _four(p: Painter, dx: float, dy: float, height: float, thick: float, *, round_: bool) -> None:
    for sx in (-1, 1):
        for sy in (-1, 1):
            leg = cylinder(thick * 0.45, height, top=thick * 0.6, sides=14) if round_ else box(thick, thick, height)
            p.add(leg.move(sx * dx, sy * dy), "legs")


@kind("chair", "legs", "seat", "backrest")
def chair(p: Painter) -> None:
    width, depth, seat_z = p.between(0.46, 0.56), p.between(0.44, 0.52), p.between(0.40, 0.48)
    back, thick = p.between(0.42, 0.62), p.between(0.06, 0.08)
    _four(p, depth / 2 - 0.05, width / 2 - 0.05, seat_z, thick, round_=p.chance(0.4))
    p.add(box(depth, width, 0.075, bevel=0.03).move(z=seat_z - 0.01), "seat")
    lean = p.between(4, 12)
    style = p.whole(0, 2)
    if style == 0:
        panels = [box(0.06, width * 0.94, back, bevel=0.028).move(z=0.05)]
    elif style == 1:
        panels = [box(0.055, 0.075, back, bevel=0.025).move(y=y) for y in (-width * 0.42, 0, width * 0.42)]
        panels.append(box(0.06, width, 0.13, bevel=0.028).move(z=back - 0.06))
    else:
        panels = [box(0.055, 0.07, back, bevel=0.025).move(y=y) for y in (-width * 0.43, width * 0.43)]
        panels += [box(0.055, width, 0.11, bevel=0.025).move(z=z) for z in (back * 0.32, back - 0.08)]
    for panel in panels:
        p.add(panel.turn("y", -lean).move(x=-depth / 2 + 0.04, z=seat_z + 0.02), "backrest")
    if p.chance(0.25):
        for side in (-1, 1):
            p.add(box(depth * 0.85, 0.06, 0.055).move(y=side * width / 2, z=seat_z + 0.22))
            p.add(box(0.055, 0.055, 0.2).move(x=depth * 0.32, y=side * width / 2, z=seat_z + 0.04))


@kind("table", "legs", "border")
def table(p: Painter) -> None:
    width, depth, height = p.between(0.75, 1.0), p.between(0.55, 0.75), p.between(0.45, 0.65)
    thick = p.between(0.06, 0.09)
    if p.part != "legs" and p.chance(0.4):
        p.add(lathe([(0.26, 0), (0.25, 0.04), (0.08, 0.08), (0.06, 0.2), (0.07, height)], smooth=3))
        p.add(cylinder(width / 2, thick, bevel=0.03, sides=36).move(z=height))
        p.add(torus(width / 2, 0.045, sides=36).move(z=height + thick / 2), "border")
        return
    inset = p.between(0.05, 0.09)
    _four(p, depth / 2 - inset, width / 2 - inset, height, p.between(0.07, 0.1), round_=p.chance(0.4))
    p.add(box(depth, width, thick, bevel=0.03).move(z=height))
    if p.part == "border":
        for side in (-1, 1):
            for at, x, y in ((depth, 0.07, width + 0.08), (width, depth + 0.08, 0.07)):
                edge = box(x, y, thick + 0.03, bevel=0.03).move(z=height - 0.015)
                p.add(edge.move(x=side * at / 2) if x < y else edge.move(y=side * at / 2), "border")
    if p.chance(0.4):
        p.add(box(depth * 0.82, width * 0.82, 0.08).move(z=height - 0.07), "frame")


@kind("sofa", "cushions", "armrests", "legs")
def sofa(p: Painter) -> None:
    width, depth = p.between(0.95, 1.3), p.between(0.46, 0.54)
    arm_z, back_z, arm = p.between(0.34, 0.42), p.between(0.52, 0.64), p.between(0.12, 0.16)
    for sx in (-1, 1):
        for sy in (-1, 1):
            leg = cylinder(0.035, 0.13, top=0.05, sides=12)
            p.add(leg.move(sx * (depth / 2 - 0.06), sy * (width / 2 - 0.07)), "legs", plain="brown")
    p.add(box(depth, width, 0.16, bevel=0.04).move(z=0.11))
    p.add(box(0.17, width, back_z - 0.11, bevel=0.07).move(x=-depth / 2 + 0.085, z=0.11))
    for side in (-1, 1):
        p.add(box(depth, arm, arm_z - 0.1, bevel=0.055).move(y=side * (width / 2 - arm / 2 + 0.02), z=0.11), "armrests")
    count = 2 if width < 1.15 else 3
    inner = width - 2 * arm + 0.03
    for k in range(count):
        y = (k - (count - 1) / 2) * inner / count
        p.add(box(depth - 0.16, inner / count - 0.01, 0.11, bevel=0.045).move(x=0.08, y=y, z=0.25), "cushions")
        pillow = box(0.12, inner / count - 0.02, back_z - 0.33, bevel=0.05).turn("y", -10)
        p.add(pillow.move(x=-depth / 2 + 0.2, y=y, z=0.34), "cushions")


@kind("lamp", "base", "border")
def lamp(p: Painter) -> None:
    height, wide = p.between(0.55, 0.95), p.between(0.24, 0.32)
    foot, shade = p.between(0.17, 0.22), p.between(0.28, 0.38)
    if p.chance(0.5):
        belly = p.between(0.11, 0.16)
        curve = [(foot * 0.8, 0), (foot * 0.8, 0.03), (0.06, 0.07), (belly, height * 0.28), (0.045, height * 0.55)]
        p.add(lathe(curve, smooth=4), "base")
    else:
        p.add(cylinder(foot, 0.06, bevel=0.025, sides=28), "base")
    p.add(capsule(height + 0.02, 0.032).move(z=0.03), "base")
    z, narrow = height - 0.06, wide * p.between(0.45, 0.7)
    wall = 0.02
    profile = [(wide - wall, 0), (wide, 0.01), (narrow, shade), (narrow - wall, shade), (wide - 2 * wall, 0.015)]
    p.add(lathe(profile, sides=32).move(z=z))
    p.add(cylinder(narrow - 0.01, 0.01, sides=20).move(z=z + shade - 0.03))
    if p.part == "border":
        p.add(torus(wide, 0.034, sides=32).move(z=z + 0.01), "border")
        p.add(torus(narrow, 0.03, sides=28).move(z=z + shade), "border")
