"""What the commands that measure share: worker processes, their progress, ratios, and the machine's description.

``schedule`` runs worker processes, ``answer`` is what these print, ``progress`` shows how far they are, ``ratio`` sums
up two series of times, ``markdown`` writes tables for documentation, ``machine`` says where the numbers come from and
``repository`` of which commit the code was, ``plot`` makes PNGs.
"""
