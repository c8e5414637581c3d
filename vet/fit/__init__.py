"""The folder door: from photos to a tuned model, without a config.

Only the command `vet fit` imports this room. vet/check reads the photos.

- prepared.py reads the photos, and leaves out photos from which nothing can be learned.
- split.py divides the photos.
- choices.py chooses a backbone and the length of the training.
- recipe.py writes the config.
- fitting.py does all of this in order.
"""
