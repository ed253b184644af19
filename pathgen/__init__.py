"""Whole-slide images and pathology reports in, image-text pairs, a pathology CLIP and a pathology LLaVA out

Modules:

- `pathgen.findings`: The vocabulary of the project: what a pathologist can see on an H&E slide, how it is written, and whether a text asserts or denies it."""

__version__ = "0.1.0"
