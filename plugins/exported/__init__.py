"""Reading what `chexgenbench dataset export` wrote."""
