"""Pseudo-labels: a teacher over a data set into a store; in one process, several, or on machines joined by Ray."""

from leadline.labelling.run import Summary, label
from leadline.labelling.teacher import Item, Job

__all__ = ["Item", "Job", "Summary", "label"]
