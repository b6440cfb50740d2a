"""The re-identification network, pairs of images, and excesses over a control."""
