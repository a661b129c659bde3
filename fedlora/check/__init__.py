"""What there is to see before anything trains: rows, tokens, model, memory. Plain data, no colours.

data.py     columns and their kinds; whose rows they are, label by label
tokens.py   rows as the model reads them, and how long they are
model.py    the model, its adapter, and what they need
"""
