"""The installed package `videomv`: its command, and how it is built from this repository (see README.md here)."""
