"""Watermarks in a teacher's tokens: the key, the mark, and how it is found in texts and in students.

All of it works on token ids of the teacher's tokenizer and is the same function of (key, context, token) wherever it
runs, to the last bit.
"""
