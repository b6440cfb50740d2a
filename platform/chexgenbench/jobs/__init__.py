"""The work itself: images from requests, features from images, scores of tasks; files in, out."""
