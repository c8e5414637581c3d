"""Looks at photos before a training. `vet check` and `vet fit` use this room.

- photos.py reads the photos with their classes.
- sameness.py reads each file once, and finds copies.
- findings.py says what is wrong or unusual.
- labels.py finds labels that are probably wrong, and outliers, by the features of a backbone.
- page.py shows the photos of each finding.
"""
