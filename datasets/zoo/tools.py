"""Tools, standing upright: hammer, screwdriver, umbrella, axe."""

from __future__ import annotations

from datasets.zoo.kinds import Painter, kind
from datasets.zoo.primitives import box, capsule, cylinder, ellipsoid, lathe, prism, torus, tube


@kind("hammer", "head", "grip")
def hammer(p: Painter) -> None:
    tall, grip = p.between(0.72, 0.85), p.between(0.05, 0.065)
    handle = [(grip * 0.8, 0), (grip * 1.15, 0.04), (grip, tall * 0.3), (grip * 0.75, tall * 0.6), (grip * 0.8, tall)]
    p.add(lathe(handle, smooth=3, sides=18))
    if p.part == "grip":
        p.add(capsule(tall * 0.42, grip * 1.3, sides=18).move(z=-0.01), "grip")
    size, reach = p.between(0.15, 0.19), p.between(0.2, 0.26)
    z = tall - size / 2 + 0.05
    p.add(box(size, size * 1.5, size, bevel=0.03).move(z=z), "head")
    face = cylinder(size * 0.42, reach - 0.05, sides=20).turn("x", -90)
    p.add(face.move(y=0.05, z=z + size / 2), "head")
    p.add(cylinder(size * 0.58, 0.08, bevel=0.02, sides=22).turn("x", -90).move(y=reach - 0.03, z=z + size / 2), "head")
    if p.chance(0.6):
        claw = [(0, 0), (0.12, 0.0), (0.27, -0.1), (0.22, 0.04), (0.0, size * 0.85)]
        p.add(prism(claw, size * 0.8).turn("z", -90).move(y=-size * 0.6, z=z + 0.03), "head")
    else:
        p.add(cylinder(size * 0.42, reach - 0.05, sides=20).turn("x", 90).move(y=-0.05, z=z + size / 2), "head")
        rear = cylinder(size * 0.58, 0.08, bevel=0.02, sides=22).turn("x", 90)
        p.add(rear.move(y=-reach + 0.03, z=z + size / 2), "head")


@kind("screwdriver", "shaft", "stripe")
def screwdriver(p: Painter) -> None:
    grip, long, shaft = p.between(0.1, 0.135), p.between(0.38, 0.48), p.between(0.42, 0.55)
    thin = p.between(0.034, 0.042)
    profile = [(0.0, 0), (grip * 0.75, 0.02), (grip, 0.1), (grip * 0.95, long * 0.6), (grip * 0.55, long * 0.85)]
    profile += [(grip * 0.7, long * 0.95), (thin * 1.2, long)]
    p.add(lathe(profile, smooth=3, sides=18).turn("x", 180).move(z=long + shaft))
    for k in range(6):
        ridge = capsule(long * 0.55, 0.024, sides=8).move(x=grip * 0.92, z=shaft + long * 0.38).turn("z", 60 * k + 30)
        p.add(ridge)
    if p.part == "stripe":
        p.add(cylinder(grip * 1.14, 0.11, bevel=0.02).move(z=shaft + long * 0.52), "stripe")
    p.add(cylinder(thin, shaft, sides=14).move(z=0.02), "shaft", plain="gray")
    p.add(box(0.03, 0.12, 0.12, bevel=0.01, top=(1.6, 0.6)), "shaft", plain="gray")


@kind("umbrella", "handle", "border")
def umbrella(p: Painter) -> None:
    wide, dome, tall = p.between(0.46, 0.54), p.between(0.24, 0.34), p.between(0.8, 0.95)
    z = tall - dome
    curve = [(wide, 0), (wide * 0.9, dome * 0.42), (wide * 0.62, dome * 0.8), (wide * 0.25, dome * 0.97), (0.0, dome)]
    inside = [(r * 0.96, h * 0.95 - 0.005) for r, h in curve[::-1]]
    p.add(lathe([*inside[:-1], (wide * 0.97, 0.0), *curve], sides=16, smooth=2).move(z=z))
    p.add(torus(wide * 0.985, 0.028, sides=32, around=8).move(z=z + 0.01), "border")
    p.add(cylinder(0.026, tall - 0.12, sides=12).move(z=0.12), "pole", plain="gray")
    p.add(cylinder(0.03, 0.1, top=0.018, sides=12).move(z=tall - 0.02), "tip", plain="gray")
    r = p.between(0.075, 0.095)
    hook = [(0, 0, 0.34), (0, 0, 0.2), (0, 0, 0.1), (0, r * 0.3, 0.1 - r * 0.72), (0, r, 0.1 - r)]
    hook += [(0, r * 1.7, 0.1 - r * 0.72), (0, 2 * r, 0.11)]
    p.add(tube(hook, 0.042, smooth=3, sides=12), "handle", plain="brown")


@kind("axe", "handle")
def axe(p: Painter) -> None:
    tall, thick = p.between(0.85, 0.95), p.between(0.042, 0.052)
    bend = p.between(0.0, 0.05)
    path = [(0, -0.05, 0.0), (0, bend, 0.22), (0, bend, 0.5), (0, 0, tall)]
    p.add(tube(path, [thick * 1.3, thick, thick, thick * 0.95], smooth=4, sides=14), "handle")
    p.add(ellipsoid(thick * 1.35, thick * 1.5, thick * 1.2, sides=14, rings=9).move(y=-0.05, z=0.02), "handle")
    reach, edge = p.between(0.3, 0.38), p.between(0.36, 0.46)
    z = tall - 0.16
    half = edge / 2
    head = [(-0.08, -0.07), (0.08, -0.07), (reach * 0.6, -half * 0.6), (reach * 0.92, -half), (reach, -half * 0.5)]
    head += [(reach * 1.04, 0), (reach, half * 0.5), (reach * 0.92, half), (reach * 0.6, half * 0.6), (0.08, 0.07)]
    head += [(-0.08, 0.07)]
    for sign in (1, -1) if p.chance(0.35) else (1,):
        p.add(prism(head, 0.1, bevel=0.035).turn("z", 90 * sign).move(z=z))
