"""What a run says of itself: the summary of what was compiled."""
