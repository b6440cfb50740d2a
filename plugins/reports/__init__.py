"""Reports written for images: their scores, what labels they state, and models that write them."""
