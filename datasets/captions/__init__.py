"""Captions from what is seen: names of colours, parts with another colour, materials."""
