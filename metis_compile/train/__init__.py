"""The main job: a small GPT trained in full precision and by a policy, side by side.

``settings`` says what a run is, ``corpus`` where its text comes from, ``model`` the network, ``trainer`` one
model with its optimizer, ``loop`` the run, ``report`` and ``plot`` what it found.
"""
