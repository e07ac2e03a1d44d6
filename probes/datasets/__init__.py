"""Local copies of public data sets as tasks: a reader for each; ``catalogue.py`` lists them."""
