"""Weights in files: tables of names, readers that execute nothing, and networks made of them."""
