"""The work itself: make images from requests, make features from images; files in, files out."""
