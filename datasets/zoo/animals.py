"""Animals: duck, dog, fish, rabbit, penguin, turtle. They look along +x."""

from __future__ import annotations

import numpy as np

from datasets.zoo.kinds import Painter, kind
from datasets.zoo.primitives import capsule, cylinder, ellipsoid, lathe, prism, torus, tube
from datasets.zoo.toys import eyes


@kind("duck", "beak", "wings")
def duck(p: Painter) -> None:
    long, fat, head = p.between(0.36, 0.42), p.between(0.25, 0.29), p.between(0.17, 0.2)
    z, x = 0.52 + head * 0.6, long * 0.5
    p.add(ellipsoid(long, fat, 0.25).move(z=0.25))
    p.add(tube([(x * 0.7, 0, 0.28), (x, 0, 0.42), (x, 0, z)], [0.2, 0.15, 0.13], smooth=3, sides=18))
    p.add(ellipsoid(head, head * 0.95, head * 0.95).move(x=x, z=z))
    bill = ellipsoid(0.14, 0.1, 0.042, sides=18, rings=9)
    p.add(bill.move(x + head + 0.03, 0, z - 0.015), "beak", plain="orange")
    p.add(bill.stretch(0.8, 0.85, 0.9).turn("y", 14).move(x + head, 0, z - 0.06), "beak", plain="orange")
    eyes(p, x + head * 0.62, head * 0.66, z + 0.06, 0.034)
    for side in (-1, 1):
        wing = ellipsoid(0.23, 0.07, 0.14, sides=18, rings=11).turn("y", 14)
        p.add(wing.move(-0.05, side * fat * 0.9, 0.31), "wings")
        tip = ellipsoid(0.1, 0.045, 0.07, sides=12, rings=7).turn("y", 30)
        p.add(tip.move(-0.24, side * fat * 0.86, 0.36), "wings")
    p.add(ellipsoid(0.17, 0.13, 0.07, sides=16, rings=9).turn("y", 38).move(x=-long * 0.95, z=0.38))


@kind("dog", "ears", "collar", "tail")
def dog(p: Painter) -> None:
    long, fat, leg = p.between(0.3, 0.37), p.between(0.145, 0.18), p.between(0.24, 0.34)
    z = leg + fat * 0.7
    p.add(ellipsoid(long, fat, fat * 1.05).move(z=z))
    for sx in (-1, 1):
        for side in (-1, 1):
            p.add(capsule(leg + 0.1, 0.06, sides=14).move(sx * long * 0.68, side * fat * 0.58))
            paw = ellipsoid(0.085, 0.065, 0.045, sides=12, rings=7)
            p.add(paw.move(sx * long * 0.68 + 0.03, side * fat * 0.58, 0.045))
    x, top = long * 1.02, z + p.between(0.24, 0.3)
    p.add(tube([(long * 0.6, 0, z + 0.02), (x, 0, top)], [fat * 0.85, 0.11], sides=18))
    p.add(ellipsoid(0.165, 0.15, 0.15).move(x=x + 0.02, z=top + 0.02))
    p.add(ellipsoid(0.14, 0.085, 0.075, sides=18, rings=9).move(x=x + 0.16, z=top - 0.035))
    p.add(ellipsoid(0.035, 0.045, 0.035, sides=12, rings=7).move(x=x + 0.295, z=top - 0.005), "nose", plain="black")
    eyes(p, x + 0.145, 0.075, top + 0.075, 0.028)
    hanging = p.chance(0.6)
    for side in (-1, 1):
        if hanging:
            ear = ellipsoid(0.075, 0.035, 0.15, sides=14, rings=9).turn("x", side * 14)
            p.add(ear.move(x - 0.02, side * 0.155, top + 0.02), "ears")
        else:
            ear = cylinder(0.075, 0.19, top=0.012, sides=12).stretch(x=0.6).turn("x", -side * 14)
            p.add(ear.move(x - 0.02, side * 0.09, top + 0.1), "ears")
    curl = p.between(0.16, 0.26)
    tail = [(-long * 0.9, 0, z + 0.04), (-long - 0.1, 0, z + 0.1), (-long - 0.15, 0, z + curl + 0.06)]
    p.add(tube(tail, [0.05, 0.048, 0.036], smooth=4, sides=12), "tail")
    if p.part == "collar":
        lean = np.degrees(np.arctan2(x - long * 0.6, top - z))
        p.add(torus(0.145, 0.038, around=10).turn("y", lean).move(x=long * 0.86, z=z + (top - z) * 0.52), "collar")


@kind("fish", "tail", "fins")
def fish(p: Painter) -> None:
    long, tall, thick = p.between(0.36, 0.42), p.between(0.22, 0.3), p.between(0.12, 0.15)
    p.add(ellipsoid(long, thick, tall, sides=26, rings=17))
    span = p.between(0.22, 0.28)
    for side in (-1, 1):
        lobe = ellipsoid(0.07, 0.035, span * 0.72, sides=14, rings=11).move(z=span * 0.52)
        p.add(lobe.turn("y", -side * 38).stretch(z=side).turn("y", 0).move(x=-long * 0.92), "tail")
    back = [
        (-long * 0.5, tall * 0.72),
        (long * 0.35, tall * 0.78),
        (long * 0.05, tall + 0.17),
        (-long * 0.42, tall + 0.13),
    ]
    p.add(prism(back, 0.05, bevel=0.02), "fins")
    under = [(-long * 0.3, -tall * 0.75), (-long * 0.32, -tall - 0.12), (long * 0.02, -tall * 0.85)]
    p.add(prism(under, 0.05, bevel=0.02), "fins")
    for side in (-1, 1):
        fin = ellipsoid(0.12, 0.03, 0.075, sides=14, rings=9).move(x=-0.1).turn("z", side * -38).turn("y", -20)
        p.add(fin.move(long * 0.2, side * thick * 0.86, -0.06), "fins")
    eyes(p, long * 0.62, thick * 0.7, tall * 0.25, 0.058, plain="white")
    eyes(p, long * 0.66, thick * 0.7 + 0.03, tall * 0.25, 0.034)
    mouth = torus(0.05, 0.022, sides=16, around=8).turn("y", 90)
    p.add(mouth.move(x=long * 0.985, z=-0.02))


@kind("rabbit", "ears", "belly")
def rabbit(p: Painter) -> None:
    fat, head, ear = p.between(0.22, 0.26), p.between(0.17, 0.2), p.between(0.22, 0.29)
    p.add(ellipsoid(fat * 1.02, fat, 0.29).move(z=0.29))
    p.add(ellipsoid(fat * 0.4, fat * 0.64, 0.2, sides=18).move(x=fat * 0.7, z=0.28), "belly")
    z, x = 0.56 + head * 0.7, 0.06
    p.add(ellipsoid(head * 1.05, head, head * 0.95).move(x=x, z=z))
    spread = p.between(8, 20)
    for side in (-1, 1):
        long = ellipsoid(0.045, 0.07, ear, sides=14, rings=13).move(z=ear * 0.8).turn("x", -side * spread)
        p.add(long.move(x - 0.03, side * head * 0.4, z + head * 0.7), "ears")
        p.add(ellipsoid(0.17, 0.085, 0.07, sides=14, rings=9).move(fat * 0.75, side * fat * 0.6, 0.07))
        paw = ellipsoid(0.06, 0.06, 0.13, sides=14, rings=9).turn("y", -42)
        p.add(paw.move(fat * 0.9, side * fat * 0.5, 0.4))
        cheek = ellipsoid(0.06, 0.065, 0.05, sides=12, rings=7)
        p.add(cheek.move(x + head * 0.9, side * 0.05, z - 0.07), "cheeks", plain="white")
    nose = ellipsoid(0.03, 0.035, 0.026, sides=12, rings=7)
    p.add(nose.move(x + head * 1.12, 0, z - 0.025), "nose", plain="black")
    eyes(p, x + head * 0.82, 0.085, z + 0.055, 0.03)
    p.add(ellipsoid(0.1, 0.1, 0.1, sides=16, rings=9).move(x=-fat * 1.08, z=0.17), "tail", plain="white")


@kind("penguin", "beak", "belly", "feet")
def penguin(p: Painter) -> None:
    fat, tall, head = p.between(0.24, 0.28), p.between(0.36, 0.42), p.between(0.175, 0.2)
    p.add(ellipsoid(fat * 0.92, fat, tall).move(z=tall + 0.03))
    p.add(
        ellipsoid(fat * 0.5, fat * 0.76, tall * 0.8, sides=20).move(x=fat * 0.5, z=tall - 0.02), "belly", plain="white"
    )
    z = 2 * tall + head * 0.15
    p.add(ellipsoid(head, head, head * 0.95).move(z=z))
    beak = cylinder(0.065, 0.19, top=0.012, sides=14).stretch(x=0.7).turn("y", 95)
    p.add(beak.move(x=head * 0.85, z=z - 0.02), "beak", plain="orange")
    eyes(p, head * 0.8, 0.085, z + 0.06, 0.042, plain="white")
    eyes(p, head * 0.8 + 0.025, 0.088, z + 0.06, 0.024)
    for side in (-1, 1):
        wing = ellipsoid(0.09, 0.045, tall * 0.62, sides=14, rings=11).move(z=-tall * 0.5)
        p.add(wing.turn("x", side * p.between(14, 34)).move(0, side * fat * 0.86, tall * 1.5))
        p.add(
            ellipsoid(0.14, 0.09, 0.045, sides=14, rings=7).turn("z", side * 14).move(0.12, side * 0.12, 0.04),
            "feet",
            plain="orange",
        )


@kind("turtle", "legs", "head")
def turtle(p: Painter) -> None:
    long, wide, high = p.between(0.36, 0.4), p.between(0.29, 0.33), p.between(0.26, 0.33)
    dome = [(0.9, 0.0), (1.0, 0.03), (1.0, 0.08)] + [
        (np.cos(a), 0.08 + 0.92 * np.sin(a)) for a in np.radians([20, 40, 60, 78, 90])
    ]
    p.add(lathe(dome, sides=28).stretch(long, wide, high).move(z=0.13), "shell")
    p.add(torus(1.0, 0.1, sides=28, around=8).stretch(long, wide, 0.42).move(z=0.16), "shell")
    for sx in (-1, 1):
        for side in (-1, 1):
            leg = ellipsoid(0.1, 0.095, 0.13, sides=14, rings=9).turn("x", -side * 18)
            p.add(leg.move(sx * long * 0.66, side * wide * 0.78, 0.12), "legs")
    x, z = long + 0.16, p.between(0.28, 0.36)
    p.add(
        tube([(long * 0.7, 0, 0.18), (long + 0.06, 0, z - 0.1), (x, 0, z)], [0.09, 0.08, 0.085], smooth=3, sides=14),
        "head",
    )
    p.add(ellipsoid(0.135, 0.115, 0.11, sides=18).move(x=x + 0.03, z=z + 0.02), "head")
    eyes(p, x + 0.11, 0.075, z + 0.07, 0.03)
    p.add(cylinder(0.05, 0.14, top=0.01, sides=10).turn("y", -100).move(x=-long * 0.92, z=0.16))
