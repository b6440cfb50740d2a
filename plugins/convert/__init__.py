"""Training checkpoints to the folders that diffusers loads; behind ``chexgenbench convert``.

A converter is a table of name rules (`names`) and a function that reads an architecture off the
tensors. What all converters do alike is here: `checkpoint` reads the file, `folder` takes the other
parts from a base and writes the result.
"""
